"""What the paper states of mixing and never measured: its cost, and a strength of its own for every prompt."""

import json
import statistics
import time
from pathlib import Path

from dera_jax.common.json_files import write_json
from scripts.reproduce.data import write_rows

REPEATS = 5


def cost(out: Path, reference: str, aligned: str, prompts: str, rows: str, new_tokens: str) -> None:
    """Writes what decoding the pair costs against decoding its aligned model alone: seconds and bytes.

    The two take turns; every row makes exactly `new_tokens` tokens.
    """
    import jax

    from dera_jax.data.encoding import encode_prompts
    from dera_jax.data.prompts import load_prompts
    from dera_jax.decoding.complete import complete
    from dera_jax.decoding.config import DecodeConfig
    from dera_jax.decoding.request import Request
    from dera_jax.performance.bench.sides import without_eos
    from dera_jax.policies.load import load_policies

    policies = without_eos(load_policies(reference, aligned))
    config = DecodeConfig(max_new_tokens=int(new_tokens))
    asked = load_prompts(prompts, int(rows))
    sides = {
        "pair": (policies, (0.5,)),
        "one": (policies[1:], ()),
    }
    runs = {}
    for name, (models, strength) in sides.items():
        requests = [Request(prompt, 0, strength) for prompt in encode_prompts(models, asked, int(new_tokens))]
        runs[name] = (models, requests)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(REPEATS + 1):
        for name, (models, requests) in runs.items():
            start = time.perf_counter()
            tokens = sum(len(c.tokens) for c in complete(models, requests, config, len(requests)))
            if turn:  # the first one compiles
                seconds[name].append((time.perf_counter() - start) / tokens)
    ratios = [pair / one for pair, one in zip(seconds["pair"], seconds["one"], strict=True)]
    sizes = {
        name: sum(a.nbytes for policy in models for a in jax.tree.leaves(policy.params))
        for name, (models, _) in runs.items()
    }
    found = {
        "rows": len(asked),
        "seconds_per_token": seconds,
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "parameter_bytes": sizes,
        "device": jax.devices()[0].device_kind,
    }
    write_json(out, found)
    print(json.dumps(found["ratio"]))


def strengths_by_prompt(out: Path, prompts: str, strengths: str) -> None:
    """Writes prompts.jsonl: the prompts with a field `lambda`, going round the strengths."""
    from dera_jax.data.records import load_records

    several = [float(text) for text in strengths.split(",")]
    records = load_records(prompts)
    write_rows(
        out / "prompts.jsonl", (r.fields | {"lambda": several[r.number % len(several)]} for r in records)
    )
