"""Makes prompts of TinyStories: the first words of each story, no two alike, split into two files.

    python scripts/tinystories_prompts.py STORIES.txt OUT

writes OUT/train.jsonl and OUT/heldout.jsonl. No held-out opening is a training opening.
"""

import argparse
import json
import random
import re
from pathlib import Path


def openings(text: str, words: int) -> list[str]:
    """Returns the first `words` words of each story, each opening once, in order.

    Paragraphs of a story are set apart by an empty line, stories by the end of a line alone.
    """
    stories = re.split(r"(?<!\n)\n(?!\n)", text)
    first = (story.split()[:words] for story in stories)
    return list(dict.fromkeys(" ".join(found) for found in first if len(found) == words))


def main() -> None:
    """Writes the two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stories", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--words", type=int, default=8, help="of each story (default %(default)s)")
    parser.add_argument("--heldout", type=int, default=128, help="prompts held out (default %(default)s)")
    args = parser.parse_args()
    if not args.stories.is_file():
        parser.error(f"expected a file, found none: {args.stories}")
    prompts = openings(args.stories.read_text(encoding="utf-8"), args.words)
    random.Random(0).shuffle(prompts)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {"heldout": prompts[: args.heldout], "train": prompts[args.heldout :]}
    for name, part in parts.items():
        lines = [json.dumps({"id": f"{name}-{i}", "prompt": prompt}) + "\n" for i, prompt in enumerate(part)]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{args.out / name}.jsonl: {len(part)} prompts")


if __name__ == "__main__":
    main()
