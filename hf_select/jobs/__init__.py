"""Long jobs: chunked jobs, run folders, journals, retries, progress and distributed launches."""
