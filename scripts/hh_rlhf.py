"""Learns human preferences (Anthropic HH): SFT, then a reward model and DPO for each of two subsets.

  PYTHONPATH=. python scripts/hh_rlhf.py [--data=DIR] [--model=DIR] [--work=runs/hh_rlhf] [--out=results/hh_rlhf]

From the repository's root, with what `python scripts/get_data.py hh_rlhf stories260K` gets; a quarter of an hour
on two cores. Finished stages are kept; README.md in OUT is written anew. A fifth of the conversations, by a hash
of the first question, is held out with all its pairs.
The subsets pull apart (the longer answer wins 44 % of the harmless pairs and 59 % of the helpful ones), so each
has a reward model and a DPO model of its own. Of a conversation the last 160 characters before the answers
are kept. The reward models' settings were chosen on a fifth of the training pairs, none of the held-out
ones; DPO's were not searched.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from dera_jax.commands.process import endings
from dera_jax.common.folders import find_data

SUBSETS = ("harmless-base", "helpful-base")
ANSWER = "\n\nAssistant:"
CONTEXT = 160
"""Characters of a conversation before the answers."""
SHARED = {"max_length": 384, "eval_share": 0.2, "eval_steps": 92, "warmup_ratio": 0.1}
SFT = SHARED | {"batch_size": 32, "learning_rate": 2e-3}
REWARD = SHARED | {"batch_size": 16, "learning_rate": 1e-3, "weight_decay": 1.0, "num_train_epochs": 2}
DPO = SHARED | {"batch_size": 16, "learning_rate": 5e-4, "beta": 0.1}
PENALTIES = (1, 3, 10, 30, 100, 300)
"""Of which the bag of words takes the one that does best in five parts of the training pairs."""


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs all stages; finished ones are not run again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("work", "runs/hh_rlhf"),
        ("out", "results/hh_rlhf"),
    ):
        parser.add_argument(f"--{name}", type=Path, default=Path(default), help="(default %(default)s)")
    parser.add_argument("--data", type=Path, help="(default: hh_rlhf in the data folder)")
    parser.add_argument("--model", help="(default: stories260K in the data folder)")
    args = parser.parse_args(argv)
    data, model = args.data or find_data("hh_rlhf"), args.model or find_data("stories260K")
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = {subset: write_split(data / f"{subset}.test.jsonl.gz", args.work / subset) for subset in SUBSETS}
    together = [row for subset in SUBSETS for row in pairs[subset][0]]
    write_rows(args.work / "train.jsonl", together)
    sft = args.work / "sft"
    train("sft", model=model, data=args.work / "train.jsonl", out=sft, **SFT)
    for subset in SUBSETS:
        place = args.work / subset
        given = {"model": sft / "best", "data": place / "train.jsonl"}
        train("reward", **given, out=place / "reward", **REWARD)
        train("dpo", **given, out=place / "dpo", **DPO)
    report = {subset: judge(subset, pairs[subset], args.work, args.out) for subset in SUBSETS}
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(readme(report), encoding="utf-8")
    print(table(report))


def write_split(file: Path, out: Path) -> tuple[list[dict], list[dict]]:
    """Writes the pairs to train on and those held out, and returns both; empty and equal answers are left out."""
    split: tuple[list[dict], list[dict]] = [], []
    for line in gzip.decompress(file.read_bytes()).splitlines():
        row = json.loads(line)
        question = row["chosen"].split(ANSWER)[0]
        pair = read_pair(row["chosen"], row["rejected"])
        if pair["chosen"] != pair["rejected"] and pair["chosen"].strip() and pair["rejected"].strip():
            split[zlib.crc32(question.encode()) % 5 == 0].append(pair)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "held_out"), split, strict=True):
        write_rows(out / f"{name}.jsonl", rows)
    return split


def read_pair(chosen: str, rejected: str) -> dict:
    """Returns two transcripts as what they share, up to the last turn, and the answers."""
    shortest = min(len(chosen), len(rejected))
    same = next((n for n in range(shortest) if chosen[n] != rejected[n]), shortest)
    start = chosen[:same].rfind(ANSWER) + len(ANSWER)
    return {
        "prompt": chosen[:start][-CONTEXT:],
        "chosen": chosen[start:],
        "rejected": rejected[start:],
    }


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Writes JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(name: str, **options) -> list[str]:
    """Returns the words of a training command of this project."""
    return [f"train.{name}", *(f"--{key.replace('_', '-')}={value}" for key, value in options.items())]


def train(name: str, **options) -> None:
    """Runs a training command; ends the script if it fails."""
    words = command(name, **options)
    print("python -m", *words, flush=True)
    if code := subprocess.run([sys.executable, "-m", *words], check=False).returncode:
        raise SystemExit(code)


def judge(subset: str, pairs: tuple[list[dict], list[dict]], work: Path, out: Path) -> dict:
    """Returns how often each judge ranks the held-out pairs of a subset as people did; draws the calibration."""
    from dera_jax.analysis.calibration import calibrate, plot_calibration
    from dera_jax.data.examples import encode_pairs
    from dera_jax.data.records import load_records
    from dera_jax.policies.load import load_policy
    from dera_jax.policies.reward_models import load_reward_model
    from dera_jax.training.reference_logprobs import reference_logprobs
    from dera_jax.training.reward import pair_margins

    place = work / subset
    policies = {"SFT": load_policy(str(work / "sft/best")), "DPO": load_policy(str(place / "dpo/best"))}
    encoded, kept = encode_pairs(
        policies["SFT"], load_records(str(place / "held_out.jsonl")), SHARED["max_length"]
    )
    print(kept.told(f"{subset}, held out"))
    margins = {"reward model": pair_margins(load_reward_model(str(place / "reward/best")), encoded)}
    for bag, split in (("words", words_of), ("tokens", lambda t: policies["SFT"].tokenizer(t).input_ids)):
        margins[f"bag of {bag}"] = bag_margins(pairs, split)
    lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in encoded])
    margins["the longer one"] = lengths[:, 0] - lengths[:, 1]
    sides = [(pair.prompt, side) for pair in encoded for side in (pair.chosen, pair.rejected)]
    logprobs = {
        n: reference_logprobs(p, sides, 32, work / "cache", progress=True).reshape(-1, 2)
        for n, p in policies.items()
    }
    for name, each in logprobs.items():
        per_token = each / lengths
        margins[f"{name}, likelihood per token (Eq. 14)"] = per_token[:, 0] - per_token[:, 1]
    ratio = logprobs["DPO"] - logprobs["SFT"]
    margins["DPO, implicit reward"] = ratio[:, 0] - ratio[:, 1]
    found = calibrate(margins["reward model"])
    plot_calibration(found, out / f"calibration-{subset}.png", subset)
    return {
        name: [getattr(calibrate(m).accuracy, part) for part in ("mean", "low", "high")]
        for name, m in margins.items()
    }


def words_of(text: str) -> list[str]:
    """Returns the words of a text, in small letters."""
    return re.findall(r"[a-z']+", text.lower())


def bag_margins(pairs: tuple[list[dict], list[dict]], split: Callable[[str], Sequence]) -> np.ndarray:
    """Returns margins of held-out pairs by a logistic regression on the words that an answer has.

    Its penalty is chosen on the training pairs, in five parts.
    """
    both = [(set(split(p["chosen"])), set(split(p["rejected"]))) for part in pairs for p in part]
    seen = Counter(word for sides in both[: len(pairs[0])] for word in sides[0] | sides[1])
    places = {word: place for place, word in enumerate(word for word in seen if seen[word] >= 3)}
    features = np.zeros((len(both), len(places)), np.float32)
    for row, sides in enumerate(both):
        for side, sign in zip(sides, (1, -1), strict=True):
            features[row, [places[word] for word in side if word in places]] += sign
    known, held_out = np.split(features, [len(pairs[0])])
    fold = np.arange(len(known)) % 5

    def right(penalty: float) -> float:
        return np.mean([np.mean(known[fold == k] @ fit(known[fold != k], penalty) > 0) for k in range(5)])

    return held_out @ fit(known, max(PENALTIES, key=right))


def fit(features: np.ndarray, penalty: float) -> np.ndarray:
    """Returns the weights w that minimize Σ −log σ(x·w) + penalty/2 · |w|²."""

    def loss(weights):
        margins = features @ weights
        slopes = features.T @ (1 / (1 + np.exp(np.clip(margins, -500, 500))))
        value = np.logaddexp(0, -margins).sum() + penalty / 2 * weights @ weights
        return value, penalty * weights - slopes

    return minimize(
        loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    ).x


def table(report: dict) -> str:
    """Returns the figures as a table in Markdown."""
    lines = ["| share ranked as people did | " + " | ".join(SUBSETS) + " |", "|---" * 3 + "|"]
    for name in report[SUBSETS[0]]:
        each = ("{:.3f} [{:.3f}, {:.3f}]".format(*report[subset][name]) for subset in SUBSETS)
        lines.append(f"| {name} | " + " | ".join(each) + " |")
    return "\n".join(lines)


def readme(report: dict) -> str:
    """Returns what README.md says."""
    runs = [command("sft", model="MODEL", data="train.jsonl", out="sft", **SFT)]
    given = {"model": "sft/best", "data": "SUBSET/train.jsonl"}
    runs += [
        command("reward", **given, out="SUBSET/reward", **REWARD),
        command("dpo", **given, out="SUBSET/dpo", **DPO),
    ]
    lines = "\n".join("    python -m " + " ".join(words) for words in runs)
    return f"""# Anthropic HH: SFT, reward models and DPO

Written by `PYTHONPATH=. python scripts/hh_rlhf.py`, which ran, from stories260K,

{lines}

{table(report)}

Held-out pairs with 95 % intervals; a conversation is held out, or not, with all its pairs. Four fifths of some 1 850
pairs a subset are learned from; the fifth that is left stops the training and chose the reward models' settings.

A model of 260 032 parameters that had read only children's stories, and 1 500 pairs, give a reward model about as good
as a bag of words: above chance in both subsets, with so few held-out pairs neither better nor worse than the bags, and
for helpful answers not clearly better than taking the longer one. Its probabilities are about as they should be. DPO's
implicit reward is above chance, but overconfident (its loss on the pairs that stop the training is 0.79 and 0.77, a
coin's 0.69), and the likelihood per token ranks as SFT's does: for helpful answers worse than a coin. Nothing of this
is alignment worth sampling from.

![harmless](calibration-harmless-base.png) ![helpful](calibration-helpful-base.png)
"""


if __name__ == "__main__":
    sys.exit(main())
