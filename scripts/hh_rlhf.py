"""Trains on human preferences (Anthropic HH): SFT, a reward model and DPO, all held out by prompt.

  python scripts/hh_rlhf.py ../shared/data/hh_rlhf --model=../shared/models/stories260K --out=runs/hh_rlhf

Both subsets are trained on together, four fifths of their prompts; what is held out is judged for each
by itself. Writes OUT/train.jsonl, OUT/held_out.jsonl, three model folders and OUT/report.json. Takes
about a quarter of an hour on 2 cores.
"""

import argparse
import gzip
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

SUBSETS = ("harmless-base", "helpful-base")
MAX_LENGTH = 512
SHARED = {"max_length": MAX_LENGTH, "batch_size": 32, "eval_steps": 50, "warmup_ratio": 0.1}
SFT = SHARED | {"num_train_epochs": 1, "learning_rate": 2e-3}
REWARD = SHARED | {"num_train_epochs": 2, "learning_rate": 5e-4, "weight_decay": 0.1}
DPO = SHARED | {"num_train_epochs": 1, "learning_rate": 2e-4, "beta": 0.1}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with SUBSET.test.jsonl.gz")
    parser.add_argument("--model", required=True, help="where to start")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    write_split(args.data, args.out)
    files = {"data": args.out / "train.jsonl", "eval_data": args.out / "held_out.jsonl"}
    train("sft", model=args.model, out=args.out / "sft", **files, **SFT)
    sft = args.out / "sft" / "best"
    train("reward", model=sft, out=args.out / "reward", **files, **REWARD)
    train("dpo", model=sft, out=args.out / "dpo", **files, **DPO)
    report = judge(args.out) | {"seconds": round(time.perf_counter() - start)}
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def write_split(data: Path, out: Path) -> None:
    """Writes a fifth of the prompts, by a hash of their first question, and the rest."""
    with (out / "train.jsonl").open("w") as train_file, (out / "held_out.jsonl").open("w") as held_out:
        for subset in SUBSETS:
            for line in gzip.decompress((data / f"{subset}.test.jsonl.gz").read_bytes()).splitlines():
                row = json.loads(line)
                question = row["chosen"].split("\n\nAssistant:")[0]
                side = held_out if zlib.crc32(question.encode()) % 5 == 0 else train_file
                side.write(json.dumps(row | {"subset": subset}) + "\n")


def train(command: str, **options) -> None:
    """Runs a training command of this project; ends the script if it fails."""
    words = [f"--{name.replace(chr(95), chr(45))}={value}" for name, value in options.items()]
    print("python -m", f"train.{command}", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", f"train.{command}", *words], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def judge(out: Path) -> dict:
    """Returns how often each model ranks held-out pairs as people did, for each subset and for all."""
    from dera_jax.calibration import calibrate
    from dera_jax.data import load_records
    from dera_jax.examples import encode_pairs
    from dera_jax.policies import load_policy
    from dera_jax.reference_logprobs import reference_logprobs
    from dera_jax.reward_models import load_reward_model
    from dera_jax.reward_training import pair_margins

    policies = {name: load_policy(str(out / name / "best")) for name in ("sft", "dpo")}
    reward = load_reward_model(str(out / "reward" / "best"))
    records = load_records(str(out / "held_out.jsonl"))
    found = {}
    for subset in (*SUBSETS, "all"):
        chosen = [r for r in records if subset in (r.fields["subset"], "all")]
        pairs, kept = encode_pairs(policies["sft"], chosen, MAX_LENGTH)
        lengths = [(len(p.chosen), len(p.rejected)) for p in pairs]
        figures = {"reward model": pair_margins(reward, pairs), "longer": [c - r for c, r in lengths]}
        logprobs = {}
        for name, policy in policies.items():
            sides = [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)]
            logprobs[name] = reference_logprobs(policy, sides, 32, out / "cache").reshape(-1, 2)
            per_token = logprobs[name] / lengths
            # Eq. 14: by the length-normalized likelihood.
            figures[f"{name}, likelihood per token"] = per_token[:, 0] - per_token[:, 1]
        ratio = logprobs["dpo"] - logprobs["sft"]
        figures["dpo, implicit reward"] = ratio[:, 0] - ratio[:, 1]
        accuracy = {name: calibrate(margins).accuracy for name, margins in figures.items()}
        found[subset] = {"pairs": str(kept)} | {
            name: [round(x, 4) for x in (one.mean, one.low, one.high)] for name, one in accuracy.items()
        }
    return found


if __name__ == "__main__":
    main()
