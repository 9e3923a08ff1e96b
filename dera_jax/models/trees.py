"""Nested parameters as one dict with dotted paths, and back."""

from typing import Any

import jax


def flatten(params: dict) -> dict[str, Any]:
    """Returns nested parameters as one dict with dotted paths, such as `blocks.3.norm.scale`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(key.key) for key in path): value for path, value in leaves}


def unflatten(flat: dict[str, Any]) -> dict:
    """Returns the nested dict of dotted paths; numbers become list positions."""
    nested: dict = {}
    for path, value in flat.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        inner = nested
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return nested
