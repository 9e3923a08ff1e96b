"""What everybody uses, needing nothing but Python: checks, choices, errors, files, functions, provenance."""
