"""A T5 of a million parameters on real data: E2E from scratch, then PPO for length, then four strengths.

  PYTHONPATH=. python scripts/e2e.py [--data=DIR] [--work=runs/e2e] [--out=results/e2e_t5] [--seed=0]

From the repository's root; twelve minutes on two cores shared with other work; needs sacrebleu
(requirements-dev.txt). Finished stages are kept; README.md in OUT is written anew. DATA holds `devset.csv`
and `testset_w_refs.csv` of E2E, which `python scripts/get_data.py e2e` gets: meaning representations of restaurants,
such as `name[Aromi], eatType[coffee shop]`, with sentences that people wrote. The two are pooled, and
meaning representations held out at random: the development set alone has coffee shops with Chinese or
English food only, the test set pubs and restaurants of seven kinds. So the figures are not those of the
official split.
"""

import argparse
import gzip
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import sacrebleu
from make_toy import write_jsonl
from transformers import PreTrainedTokenizerFast

from dera_jax.commands.process import endings
from dera_jax.common.folders import find_data
from dera_jax.common.json_files import read_json
from dera_jax.results.reading import read_rows
from dera_jax.rewards.slots import parse_slots, slot_coverage
from scripts.e2e_data import HELD_OUT, pooled, split
from scripts.reproduce.t5 import save_untrained, train_tokenizer

VOCABULARY = 1024
LONGEST = 64
"""Tokens of a prompt, and of a completion, EOS included; a few training examples are longer and left out."""
SFT = dict(max_steps=1200, batch_size=32, learning_rate=3e-3, warmup_ratio=0.05)
REWARD = "length:16:24"
RLHF = dict(
    algorithm="ppo", reward=REWARD, beta=0.05, max_steps=80, batch_size=64, num_samples=2,
    learning_rate=5e-4, max_new_tokens=LONGEST, num_ppo_epochs=2, num_mini_batches=2,
    value_head="shared",
)  # fmt: skip
STRENGTHS = "0,0.5,1,2"


@endings.command
def main(argv: list[str] | None = None) -> None:
    """Runs all stages; finished ones are not run again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="(default: e2e in the data folder)")
    parser.add_argument("--work", type=Path, default=Path("runs/e2e"), help="(default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/e2e_t5"), help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default %(default)s)")
    parser.add_argument("--sft-steps", type=int, default=SFT["max_steps"], help="(default %(default)s)")
    parser.add_argument("--ppo-steps", type=int, default=RLHF["max_steps"], help="(default %(default)s)")
    args = parser.parse_args(argv)
    work, data = args.work, args.data or find_data("e2e")

    train, test = split(pooled(data), args.seed)
    tokenizer = train_tokenizer((text for mr, texts in train.items() for text in [mr, *texts]), VOCABULARY)
    save_untrained(tokenizer, work / "init")
    pairs = [(mr, text) for mr, texts in train.items() for text in texts if fits(tokenizer, mr, text)]
    write_jsonl(work / "train.jsonl", ({"prompt": mr, "completion": text} for mr, text in pairs))
    write_jsonl(work / "prompts.jsonl", ({"prompt": mr} for mr in train))
    write_jsonl(work / "test.jsonl", ({"id": f"test-{n:03}", "prompt": mr} for n, mr in enumerate(test)))

    commands = [
        command(
            "train.sft", model=work / "init", from_scratch=True, data=work / "train.jsonl",
            out=work / "reference", seed=args.seed, **SFT | {"max_steps": args.sft_steps},
        ),
        command(
            "train.rlhf", model=work / "reference", data=work / "prompts.jsonl", out=work / "aligned",
            seed=args.seed, **RLHF | {"max_steps": args.ppo_steps},
        ),
        command(
            "eval.sweep", reference=work / "reference", aligned=work / "aligned", lambda_=STRENGTHS,
            prompts=work / "test.jsonl", num_prompts=len(test), temperature=0, max_new_tokens=LONGEST,
            reward=f"{REWARD},slots", seed=args.seed, out=work / "sweep",
        ),
    ]  # fmt: skip
    for words in commands:
        run(words)

    figures = summarize(read_rows(work / "sweep"), test) | {"people": people(tokenizer, test)}
    table = markdown(figures)
    write_results(work, args.out, table, commands)
    print(table)


def fits(tokenizer: PreTrainedTokenizerFast, *texts: str) -> bool:
    """Whether texts fit the shape that all batches then have, so that it is compiled once."""
    return all(len(ids) <= LONGEST for ids in tokenizer(list(texts)).input_ids)


def command(module: str, **options) -> list[str]:
    """Returns the words of a command of this project."""
    return ["python", "-m", module] + [
        f"--{name.strip('_').replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in options.items()
    ]


def run(words: Sequence[str]) -> None:
    """Runs a command; ends the script if it fails."""
    print(" ".join(words), flush=True)
    done = subprocess.run([sys.executable, *words[1:]], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def summarize(rows: Sequence[dict], test: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Returns the figures of each strength, and of the people who wrote the references.

    BLEU is sacrebleu's on the whole set, each text against all references of its prompt.
    """
    found = {}
    for strength in sorted({row["lambda"] for row in rows}):
        some = [row for row in rows if row["lambda"] == strength]
        texts = [row["completion"] for row in some]
        found[f"{strength:g}"] = {
            "reward": mean(row["rewards"][REWARD] for row in some),
            "slots": mean(row["rewards"]["slots"] for row in some),
            "name": mean(named(row["prompt"], row["completion"]) for row in some),
            "BLEU": bleu(texts, [test[row["prompt"]] for row in some]),
            "KL": mean(row["kl_to_reference"] for row in some),
            "tokens": mean(row["length"] for row in some),
            "ended": mean(row["finish_reason"] == "eos" for row in some),
        }
    return found


def people(tokenizer: PreTrainedTokenizerFast, test: dict[str, list[str]]) -> dict[str, float]:
    """Returns the same figures of the references; BLEU of the first of each against the others."""
    pairs = [(mr, text) for mr, texts in test.items() for text in texts]
    lengths = [len(tokenizer(text).input_ids) - 1 for _, text in pairs]
    low, high = map(int, REWARD.split(":")[1:])
    several = [texts for texts in test.values() if len(texts) > 1]
    return {
        "reward": mean(low <= n <= high for n in lengths) - 1,
        "slots": mean(slot_coverage(mr, text) for mr, text in pairs),
        "name": mean(named(mr, text) for mr, text in pairs),
        "BLEU": bleu([texts[0] for texts in several], [texts[1:] for texts in several]),
        "tokens": mean(lengths),
    }


def named(mr: str, text: str) -> float:
    """Returns whether a text says the restaurant's name, as 0 or 1."""
    return slot_coverage(f"name[{dict(parse_slots(mr))['name']}]", text)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns corpus BLEU, 0 to 100, of texts with any number of references each."""
    most = max(map(len, references))
    streams = [[some[n] if n < len(some) else None for some in references] for n in range(most)]
    return sacrebleu.corpus_bleu(list(texts), streams).score


def mean(values: Iterable[float]) -> float:
    """Returns the mean; NaN of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def markdown(figures: dict[str, dict[str, float]]) -> str:
    """Returns a table, a line per strength."""
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    digits = {"BLEU": 1, "KL": 2, "tokens": 1}
    lines = [["λ", *names], ["--:"] * (len(names) + 1)]
    for strength, row in figures.items():
        lines.append([strength, *(f"{row[n]:.{digits.get(n, 3)}f}" if n in row else "" for n in names)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_results(work: Path, out: Path, table: str, commands: Sequence[Sequence[str]]) -> None:
    """Writes README.md, manifests, metrics and rows, without the models."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("reference", "aligned", "sweep"):
        shutil.copyfile(work / name / "manifest.json", out / f"{name}_manifest.json")
        lines = "rows.jsonl" if name == "sweep" else "metrics.jsonl"
        packed = gzip.compress((work / name / lines).read_bytes(), mtime=0)
        (out / f"{name}_{lines}.gz").write_bytes(packed)
    took = [read_json(work / name / "manifest.json")["seconds"] for name in ("reference", "aligned")]
    told = "\n".join(f"    {' '.join(words)}" for words in commands)
    texts = README.format(told=told, sft=took[0], ppo=took[1], table=table, reward=REWARD, held_out=HELD_OUT)
    (out / "README.md").write_text(texts + examples(read_rows(work / "sweep")), encoding="utf-8")


def examples(rows: Sequence[dict]) -> str:
    """Returns the texts for the first, the middle and the last prompt."""
    prompts = list(dict.fromkeys(row["prompt"] for row in sorted(rows, key=lambda row: row["prompt_id"])))
    lines = []
    for prompt in (prompts[0], prompts[len(prompts) // 2], prompts[-1]):
        lines.append(f"\n`{prompt}`\n\n")
        some = sorted((row for row in rows if row["prompt"] == prompt), key=lambda row: row["lambda"])
        lines += [f"- λ = {row['lambda']:g}: {row['completion'].strip()}\n" for row in some]
    return "".join(lines)


README = """# E2E: a T5 from scratch, then PPO for length

Written by `PYTHONPATH=. python scripts/e2e.py` ({sft:.0f} s of supervised training, {ppo:.0f} s of PPO), which ran

{told}

{table}
`reward` is `{reward}` (0 inside, −1 outside); `slots` the share of slots that a text says; `name` the share of texts
that say the restaurant's name; BLEU is sacrebleu's against all references of a prompt (of people: the first reference
against the others); KL in nats per text. Greedy decoding of {held_out} meaning representations not trained on.

## Texts
"""


if __name__ == "__main__":
    sys.exit(main())
