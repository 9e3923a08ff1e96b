"""Draws from the response-level optimum (Eq. 5), of which the realigned policy is the per-token approximation."""
