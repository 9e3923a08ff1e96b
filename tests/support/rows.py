"""Rows without a run: one completion's, and those of random words."""

import random

from dera_jax.results.folder import RunFolder

LAMBDAS = (0.0, 0.5, 2.0)


def make_rows(seed, lambdas=LAMBDAS, prompts=12, samples=3):
    """Rows whose completions are random numbers of words, in a random order."""
    draw = random.Random(seed)
    rows = []
    for n in range(prompts):
        for sample in range(samples):
            for strength in lambdas:
                length = draw.randint(1, 4)
                words = " ".join(draw.choice(["tea", "milk"]) for _ in range(length))
                rows.append({
                    "prompt_id": f"p{n}", "sample": sample, "seed": seed, "turn": 0, "rule": "linear",
                    "lambda": strength, "beta": 0.1, "prompt": f"Say {n}", "completion": words,
                    "prompt_tokens": [1, n], "tokens": [5] * length, "length": length,
                    "finish_reason": "eos", "rewards": {}, "logprob": -1.0, "reference_logprob": -1.0,
                    "aligned_logprob": -1.0, "sampling_logprob": -1.0, "kl_to_reference": 0.1,
                    "log_normalizer": 0.0,
                })  # fmt: skip
    draw.shuffle(rows)
    return rows


def write_run(path, rows):
    with RunFolder(path, {"rule": "none"}, {"command": ["test"]}) as folder:
        folder.append(rows)
    return path


def row(prompt_id=0, sample=0, lambda_=1, **more):
    """A completion of three tokens, drawn from the mixture itself."""
    return {
        "prompt_id": prompt_id,
        "sample": sample,
        "lambda": lambda_,
        "beta": 0.1,
        "tokens": [5, 6, 2],
        "length": 2,
        "finish_reason": "eos",
        "rewards": {},
        "logprob": -3.0,
        "reference_logprob": -5.0,
        "aligned_logprob": -2.0,
        "sampling_logprob": -3.0,
        "kl_to_reference": 1.5,
        "log_normalizer": -0.5,
    } | more
