"""Rows of a few fields, and a run's folder for them."""

from dera_jax.results.folder import RunFolder

IDENTITY = {"models": {"reference": "a", "aligned": "b"}, "sampling": {"temperature": 1.0, "top_k": None}}


def row(prompt_id=0, sample=0, lambda_=0.5, **more):
    return {"prompt_id": prompt_id, "sample": sample, "lambda": lambda_, **more}


def folder(path, identity=None, command=("sweep",)):
    made = {"command": list(command), "time": "2025-01-01T00:00:00+00:00", "device": "cpu"}
    return RunFolder(path, IDENTITY if identity is None else identity, made)
