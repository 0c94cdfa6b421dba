"""Long jobs: chunks, run folders, journals, progress, processes."""
