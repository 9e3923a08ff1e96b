"""Rows and figures whose best strength is known."""

import json

import numpy as np

from dera_jax.analysis.tuning.grid import Grid
from dera_jax.analysis.tuning.objectives import Objective

REWARD = Objective("gold")


def gridded(means, prompts, samples=2, noise=1.0, seed=0, **figures):
    """Returns a grid whose `gold` has these means by λ, with noise that a prompt's samples share in part."""
    rng = np.random.default_rng(seed)
    keys = tuple((prompt, sample, 0) for prompt in range(prompts) for sample in range(samples))
    shape = len(means), prompts, samples
    gold = np.array(list(means.values()))[:, None, None] + noise * rng.normal(size=shape)
    gold += noise * rng.normal(size=(len(means), prompts, 1))
    named = {name: np.repeat(np.array(values)[:, None], len(keys), 1) for name, values in figures.items()}
    strengths = tuple((float(s),) for s in means)
    return Grid(strengths, keys, {"gold": gold.reshape(len(means), -1)} | named)


def rows_of(grid, beta=0.1):
    """Returns rows that hold a grid's figures."""
    return [
        {
            "prompt_id": key[0], "sample": key[1], "turn": key[2], "seed": 0, "lambda": strength[0], "beta": beta,
            "prompt": f"prompt {key[0]}", "length": 5, "kl_to_reference": abs(strength[0]),
            "rewards": {name: float(grid.figures[name][i, j]) for name in grid.figures},
        }
        for i, strength in enumerate(grid.strengths)
        for j, key in enumerate(grid.keys)
    ]  # fmt: skip


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PEAK = {s: 0.5 - (s - 1.2) ** 2 for s in (0, 0.4, 0.8, 1.2, 1.6, 2)}
"""The best is λ = 1.2, by 0.16."""
