"""Rows to numbers, tables, figures and comparisons. Without JAX."""
