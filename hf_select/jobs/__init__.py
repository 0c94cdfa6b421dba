"""Long jobs: chunks, run folders, journals, retries, progress, processes of a launch."""
