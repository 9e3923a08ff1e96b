"""A data folder of stand-ins: what the experiments read, in the same files and shapes, invented here.

The model is the shipped toy pair's reference, and all texts come from its grammar, so that they are words to it.
Nothing is to be learned from them; with them every command runs on a machine that has nothing but the repository.
"""

import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

from dera_jax.common.files import ASSETS, make_folder, write_bytes, write_text
from dera_jax.common.json_files import encode_json
from scripts.toy_grammar import RULES, write_stories

STORIES, PAIRS, QUESTIONS = 600, 200, 80
VALUES = {
    "eatType": {"pub": "is a pub", "coffee shop": "is a coffee shop"},
    "food": {
        "French": "serves French food",
        "Indian": "serves Indian food",
        "English": "serves English food",
    },
    "priceRange": {"cheap": "is cheap", "high": "has high prices"},
    "customer rating": {"low": "has a low customer rating", "5 out of 5": "is rated 5 out of 5"},
    "area": {"riverside": "lies by the river", "city centre": "lies in the city centre"},
    "familyFriendly": {"yes": "is family-friendly", "no": "is not family-friendly"},
}
"""Slots of E2E, some of their values, and how a sentence says them."""
NAMES = "The Lantern|The Blue Door|Marlow|Green Kettle|The Anchor|Fenwick".split("|")
RATINGS = {"glad": 2.1, "sad": -2.1, "calm": 1.3}
"""Of the words of each mood, −4 to 4."""


def write_stand_ins(folder: Path) -> None:
    """Writes the folder whole; nothing if it is there."""
    told = folder / "SOURCE.txt"
    if told.exists():
        return
    shutil.copytree(ASSETS / "toy/reference", folder / "stories260K", dirs_exist_ok=True)
    _write(folder / "tinystories/tiny_stories_head.txt", "\n".join(_stories()))
    for seed, name in enumerate(("devset", "testset_w_refs")):
        _write(folder / f"e2e/{name}.csv", _restaurants(seed))
    for seed, name in enumerate(("harmless", "helpful")):
        lines = b"".join(encode_json(pair) + b"\n" for pair in _transcripts(seed))
        _write(folder / f"hh_rlhf/{name}-base.test.jsonl.gz", gzip.compress(lines, mtime=0))
    _write(folder / "mt_bench/mt_bench_question.jsonl", "".join(json.dumps(q) + "\n" for q in _questions()))
    _write(folder / "vader/vader_lexicon.txt", "".join(_ratings()))
    _write(
        told, "Invented by scripts/reproduce/stand_ins.py in the shapes of what scripts/get_data.py gets.\n"
    )


def _write(path: Path, content: str | bytes) -> None:
    make_folder(path.parent)
    (write_bytes if isinstance(content, bytes) else write_text)(path, content)


def _stories() -> Iterator[str]:
    """Yields stories of two paragraphs, set apart by an empty line."""
    texts = write_stories(seed=1)
    for _ in range(STORIES):
        (opening, told), (also, more) = next(texts), next(texts)
        yield f"{opening}{told}\n\n{also}{more}"


def _restaurants(seed: int) -> str:
    """Returns meaning representations and what two people say of each, as E2E has them."""
    draw = random.Random(seed)
    text = io.StringIO(newline="")
    rows = csv.writer(text, quoting=csv.QUOTE_ALL)
    rows.writerow(["mr", "ref"])
    several = list(product(NAMES[seed::2], *([None, *values] for values in VALUES.values())))
    for name, *chosen in draw.sample(several, 150):
        said = [(slot, value) for slot, value in zip(VALUES, chosen, strict=True) if value]
        meaning = ", ".join([f"name[{name}]", *(f"{slot}[{value}]" for slot, value in said)])
        for start in ("", "You may like it: "):
            parts = [VALUES[slot][value] for slot, value in said] or ["is open"]
            draw.shuffle(parts)
            rows.writerow([meaning, f"{start}{name} {', '.join(parts[:-1] or parts)}"
                           + (f" and {parts[-1]}." if len(parts) > 1 else ".")])  # fmt: skip
    return text.getvalue()


def _transcripts(seed: int) -> Iterator[dict[str, str]]:
    """Yields pairs as Anthropic has them: whole conversations that part in the last answer.

    As there, some answers are empty, and some pairs are two of the same.
    """
    texts = write_stories(seed=2 + seed)
    for number in range(PAIRS):
        (question, answer), (second, other), (_, worse) = islice(texts, 3)
        before = f"\n\nHuman: {question}\n\nAssistant:"
        if number % 3 == 0:
            before += f"{answer}\n\nHuman: {second}\n\nAssistant:"
        rejected = {0: other, 1: " "}.get(number % 50, worse)
        yield {"chosen": f"{before}{other}", "rejected": f"{before}{rejected}"}


def _questions() -> Iterator[dict]:
    """Yields questions of two turns, as MT-Bench has them."""
    texts = (opening for opening, _ in write_stories(seed=4) if opening.endswith("?"))
    for number in range(QUESTIONS):
        yield {"question_id": 81 + number, "category": "writing", "turns": list(islice(texts, 2))}


def _ratings() -> Iterator[str]:
    """Yields the lines of a lexicon in VADER's format, for the words of the grammar's moods."""
    for mood, rating in RATINGS.items():
        for word in sorted({word for text in RULES[f"feel.{mood}"] for word in text.split()[-1:]}):
            yield f"{word}\t{rating}\t0.5\t{[round(rating)] * 10}\n"
