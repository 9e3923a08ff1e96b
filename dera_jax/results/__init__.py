"""What is on disk: rows, row files, run folders, what is missing. Without JAX."""
