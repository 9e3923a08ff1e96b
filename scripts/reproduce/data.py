"""Prompts, pairs and texts that the experiments read, each made into a folder by one function."""

import csv
import gzip
import json
import math
import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from dera_jax.commands.options.decoding import unescape
from dera_jax.common.files import write_bytes
from dera_jax.common.json_files import encode_json
from scripts.tinystories_prompts import openings as first_words

ANSWER = "\n\nAssistant:"


def openings(out: Path, stories: str, words: str, held_out: str) -> None:
    """Writes the first words of each story, no two alike, as train.jsonl and held_out.jsonl.

    The second half of what is held out is confirmatory.jsonl too: the designs of the gold experiments were chosen
    on the first.
    """
    prompts = first_words(Path(stories).read_text(encoding="utf-8"), int(words))
    random.Random(0).shuffle(prompts)
    for name, part in (("held_out", prompts[: int(held_out)]), ("train", prompts[int(held_out) :])):
        rows = [{"id": f"{name}-{n}", "prompt": prompt} for n, prompt in enumerate(part)]
        write_rows(out / f"{name}.jsonl", rows)
        if name == "held_out":
            write_rows(out / "confirmatory.jsonl", rows[len(rows) // 2 :])


def e2e(out: Path, data: str, held_out: str, vocabulary: str, longest: str) -> None:
    """Writes E2E's texts, and an untrained T5 of a million parameters with a tokenizer of its own.

    train.jsonl (prompt: a meaning representation, completion: what people wrote), prompts.jsonl,
    held_out.jsonl (with all `references`) and model/. The development and the test set are pooled and
    meaning representations held out at random: alone, the development set lacks most of the test set's
    combinations. So the figures are not those of the official split.
    """
    from scripts.reproduce.t5 import save_untrained, train_tokenizer

    found: dict[str, list[str]] = {}
    for name in ("devset.csv", "testset_w_refs.csv"):
        with open(Path(data) / name, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["mr"], []).append(" ".join(row["ref"].split()))
    meanings = list(found)
    random.Random(0).shuffle(meanings)
    asked, known = meanings[: int(held_out)], meanings[int(held_out) :]
    tokenizer = train_tokenizer((text for mr in known for text in [mr, *found[mr]]), int(vocabulary))
    save_untrained(tokenizer, out / "model")

    def fits(*texts: str) -> bool:
        return all(len(tokenizer(text).input_ids) <= int(longest) for text in texts)

    pairs = ((mr, text) for mr in known for text in found[mr] if fits(mr, text))
    write_rows(out / "train.jsonl", ({"prompt": mr, "completion": text} for mr, text in pairs))
    write_rows(out / "prompts.jsonl", ({"prompt": mr} for mr in known))
    held = ({"id": f"test-{n:03}", "prompt": mr, "references": found[mr]} for n, mr in enumerate(asked))
    write_rows(out / "held_out.jsonl", held)


def hh(out: Path, data: str, context: str, longest: str) -> None:
    """Writes Anthropic's preference pairs of both subsets, split by a hash of the first question.

    policy.jsonl (two fifths: what policies and their reward model learn from), judge.jsonl (two fifths:
    what the judge learns from) and held_out.jsonl, of which pairs.jsonl has those with answers of at most `longest`
    characters, which fit the context. Of a conversation the last `context` characters before the answers
    are kept; pairs with an empty answer or two equal ones are left out.
    """
    parts: dict[str, list[dict]] = {"policy": [], "judge": [], "held_out": []}
    for file in sorted(Path(data).glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            row = json.loads(line)
            prompt, chosen, rejected = _last_turn(row["chosen"], row["rejected"])
            if chosen != rejected and chosen.strip() and rejected.strip():
                part = zlib.crc32(row["chosen"].split(ANSWER)[0].encode()) % 5
                name = "held_out" if part == 0 else "policy" if part < 3 else "judge"
                pair = {"prompt": prompt[-int(context) :], "chosen": chosen, "rejected": rejected}
                parts[name].append({"id": f"{file.name.split('.')[0]}-{len(parts[name])}", **pair})
    parts["pairs"] = [
        row for row in parts["held_out"] if max(len(row["chosen"]), len(row["rejected"])) <= int(longest)
    ]
    for name, rows in parts.items():
        write_rows(out / f"{name}.jsonl", rows)


def _last_turn(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Returns what two transcripts share, up to the last turn, and the two answers."""
    shortest = min(len(chosen), len(rejected))
    same = next((n for n in range(shortest) if chosen[n] != rejected[n]), shortest)
    start = chosen[:same].rfind(ANSWER) + len(ANSWER)
    return chosen[:start], chosen[start:], rejected[start:]


def gold_pairs(out: Path, rows: str, temperature: str, held_out: str, stop: str) -> None:
    """Writes pairs of a model's own completions, labelled by the gold reward with Bradley–Terry noise.

    P(a ≻ b) = σ((r(a) − r(b)) / temperature) for two samples of one prompt, drawn at random: samples 0
    and 1, 2 and 3, …; two alike, an empty one, or one that was cut off make none. Written are train.jsonl and
    held_out.jsonl, a share of the prompts, with true margins; completions end as they were drawn, with `stop`.
    """
    from dera_jax.results.reading import read_rows
    from scripts.reproduce.quantities import gold

    by_prompt = defaultdict(list)
    for row in sorted(read_rows(rows), key=lambda row: (str(row["prompt_id"]), row["sample"])):
        by_prompt[row["prompt_id"]].append(row)
    noise = random.Random(0)
    parts: dict[str, list[dict]] = {"train": [], "held_out": []}
    for number, drawn in enumerate(by_prompt.values()):
        for a, b in zip(drawn[::2], drawn[1::2], strict=False):
            texts = {a["completion"], b["completion"]}
            was_cut = "length" in (a["finish_reason"], b["finish_reason"])
            if was_cut or len(texts) == 1 or not all(map(str.strip, texts)):
                continue
            margin = gold(a) - gold(b)
            prefers_a = noise.random() < 1 / (1 + math.exp(-margin / float(temperature)))
            chosen, rejected = (a, b) if prefers_a else (b, a)
            is_held = number % round(1 / float(held_out)) == 0
            parts["held_out" if is_held else "train"].append(
                {
                    "prompt": a["prompt"],
                    "chosen": _whole(chosen, stop),
                    "rejected": _whole(rejected, stop),
                    "margin_true": gold(chosen) - gold(rejected),
                }
            )
    for name, found in parts.items():
        write_rows(out / f"{name}.jsonl", found)


def _whole(row: dict, stop: str) -> str:
    """Returns a completion with what it ended at, which rows do not have; EOS is no text."""
    return row["completion"] + (unescape(stop) if row["finish_reason"] == "stop" else "")


def write_rows(path: Path, rows: Iterable[dict] | Sequence[dict]) -> None:
    """Writes JSON lines, all or none."""
    write_bytes(path, b"".join(encode_json(row) + b"\n" for row in rows))
