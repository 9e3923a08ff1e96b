"""Every rule on one pair: reward, KL, quality and price of each, beside the linear mixture.

python -m scripts.kin --reference=DIR --aligned=DIR --prompts=FILE --reward=REWARD --out=DIR

Writes a folder of rows for each rule (rerun it to add what is missing), kin.json, kin.csv and kin.png.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dera_jax import load_policies, sweep
from dera_jax.analysis.estimates import estimate
from dera_jax.commands.options.decoding import unescape
from dera_jax.common.files import write_text
from dera_jax.common.json_files import write_json
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import load_prompts
from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.performance.bench.sides import without_eos
from dera_jax.performance.bench.timing import interleave, ratio, timed
from dera_jax.rules.known import load_rule
from scripts.kin_figure import plot_kin

MIXED, AVERAGED = "0.25,0.5,1,2", "0.25,0.5,0.75,1"
"""Strengths of rules that may go beyond the models, and of those that average their probabilities."""
RULES = {
    "linear": MIXED,
    "plausible": MIXED,
    "contrastive+plausible": MIXED,
    "kl-budget": MIXED,
    "first": MIXED,
    "ramp": MIXED,
    "decay": MIXED,
    "nudging": MIXED,
    "entropy": MIXED,
    "power:p=1": AVERAGED,
    "power:p=-1": AVERAGED,
    "minimum": AVERAGED,
    "maximum": AVERAGED,
    "alpha-divergence": AVERAGED,
    "jensen-shannon": AVERAGED,
    "common": MIXED,
    "probabilities": MIXED,
    "nudging+confidence+power:p=1": AVERAGED,
}
UNMEASURED = {"tilt": "needs a value head"}
"""Rules that the page does not have, and why."""
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Makes what is missing, and writes the table and the figure."""
    args = _parser().parse_args(argv)
    policies = load_policies(args.reference, args.aligned)
    prompts = load_prompts(args.prompts, args.num_prompts)
    stop = tuple(map(unescape, args.stop))
    lines = []
    for rule, strengths in RULES.items():
        print(rule, flush=True)
        rows = list(
            sweep(
                policies, prompts, strengths, args.reward, out=args.out / load_rule(rule).name.replace(":", "-"),
                num_samples=args.num_samples, rule=rule, stop=stop, max_new_tokens=args.max_new_tokens,
            )
        )  # fmt: skip
        lines += [_line(rule, strength, rows) for strength in sorted({row["lambda"] for row in rows})]
    prices = _prices(policies, prompts, args.timed_rows, args.timed_tokens)
    write_json(args.out / "kin.json", {"rules": lines, "times_linear": prices})
    write_text(args.out / "kin.csv", table_of(lines, prices))
    plot_kin(lines, args.out / "kin.png")


def _line(rule: str, strength: float, rows: Sequence[dict]) -> dict:
    """Returns what a rule gives at a strength, each figure with its 95 % interval over prompts."""
    own = [row for row in rows if row["lambda"] == strength]
    groups = [row["prompt_id"] for row in own]
    (reward,) = own[0]["rewards"]
    figures = {
        "reward": [row["rewards"][reward] for row in own],
        "kl": [row["kl_to_reference"] for row in own],
        # Of each token, under the untouched reference: what reads unlike it is high.
        "cross_entropy": [-row["reference_logprob"] / max(1, len(row["tokens"])) for row in own],
        "length": [row["length"] for row in own],
    }
    found = {name: estimate(values, groups) for name, values in figures.items()}
    return {"rule": rule, "lambda": strength} | {
        name: {"mean": each.mean, "low": each.low, "high": each.high} for name, each in found.items()
    }


def _prices(policies, prompts, rows: int, tokens: int) -> dict[str, dict]:
    """Returns how many times as long as the linear mixture each rule takes, row by row, with nothing shared."""
    pair, config = without_eos(policies), DecodeConfig(max_new_tokens=tokens)
    (prompt,) = encode_prompts(pair, prompts[:1], tokens)
    requests = [Request(prompt, sample, (0.9,)) for sample in range(rows)]

    def run(rule: str):
        function = load_rule(rule).function
        return timed(lambda: list(complete_unshared(pair, requests, config, rows, function)))

    seconds = interleave({rule: run(rule) for rule in RULES}, REPEATS, print)
    return {rule: ratio(seconds[rule], seconds["linear"]) for rule in RULES}


def table_of(lines: Sequence[dict], prices: dict[str, dict]) -> str:
    """Returns the figures and their intervals as CSV, a line for each rule and strength."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = ("reward", "kl", "cross_entropy", "length")
    table.writerow(
        ["rule", "lambda", *(f"{n}{end}" for n in names for end in ("", "_low", "_high")), "times_linear"]
    )
    for line in lines:
        figures = [f"{line[n][key]:.4f}" for n in names for key in ("mean", "low", "high")]
        table.writerow(
            [line["rule"], f"{line['lambda']:g}", *figures, f"{prices[line['rule']]['median']:.2f}"]
        )
    return text.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("reference", "aligned", "prompts", "reward"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stop", action="append", default=[])
    sizes = {
        "num-prompts": 64, "num-samples": 4, "max-new-tokens": 128, "timed-rows": 32, "timed-tokens": 64,
    }  # fmt: skip
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser


if __name__ == "__main__":
    main()
