"""Experiments as data: how they are declared, and the paper's. Without JAX."""
