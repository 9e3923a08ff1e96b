"""Makes chats of CommonGen: a sentence is asked for that contains some words, and people's sentences answer.

    python scripts/commongen_prompts.py commongen.dev.jsonl OUT

writes OUT/heldout.jsonl, the first sets, with the words in `concepts`, and OUT/train.jsonl, the next ones, answered.
"""

import argparse
import json
from pathlib import Path

from dera_jax.common.files import make_folder, write_text
from dera_jax.rewards.concepts import split_concepts


def asked(words: list[str]) -> dict:
    """Returns the user's message."""
    return {"role": "user", "content": f"Write one sentence that contains these words: {', '.join(words)}."}


def main() -> None:
    """Writes the two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heldout", type=int, default=64, help="sets held out (default %(default)s)")
    parser.add_argument("--train", type=int, default=400, help="sets with answers (default %(default)s)")
    args = parser.parse_args()
    if not args.sets.is_file():
        parser.error(f"expected a file, found none: {args.sets}")
    records = [json.loads(line) for line in args.sets.read_text(encoding="utf-8").splitlines()]
    words = [split_concepts(record["concept_set"]) for record in records]
    heldout = [
        {"id": number, "messages": [asked(some)], "concepts": some}
        for number, some in enumerate(words[: args.heldout])
    ]
    train = [
        {"messages": [asked(some), {"role": "assistant", "content": record["scene"][0]}]}
        for some, record in list(zip(words, records, strict=True))[args.heldout : args.heldout + args.train]
    ]
    make_folder(args.out)
    for name, part in {"heldout": heldout, "train": train}.items():
        write_text(args.out / f"{name}.jsonl", "".join(json.dumps(record) + "\n" for record in part))
        print(f"{args.out / name}.jsonl: {len(part)} records")


if __name__ == "__main__":
    main()
