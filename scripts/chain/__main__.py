"""The exact chain: DeRa, whole responses, the optimum and training, compared without any sampling.

  PYTHONPATH=. python -m scripts.chain                               from results/chain/counts.json.xz
  PYTHONPATH=. python -m scripts.chain --text=FILE --tokenizer=DIR   counts another text first

writes chain.json, chain.png and README.md into --out.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.process import endings
from dera_jax.common.files import make_folder, write_bytes
from dera_jax.common.json_files import write_json
from scripts.chain.counts import count, transitions, write_counts
from scripts.chain.figures import plot_chain
from scripts.chain.measure import measure_all
from scripts.chain.page import write_page

KEPT = Path(__file__).parents[2] / "results" / "chain"


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measures the chain, and writes its page."""
    parser = ArgumentParser(
        prog="python -m scripts.chain", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="text to count, a paragraph a line")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="the model whose tokens are counted")
    parser.add_argument("--out", type=Path, default=KEPT, help="(default: results/chain)")
    args = parser.parse_args(argv)
    if (args.text is None) != (args.tokenizer is None):
        raise ValueError("expected both --text and --tokenizer, or neither")
    make_folder(args.out)
    counts = args.out / "counts.json.xz"
    if args.text:
        write_counts(count(args.text.read_text(encoding="utf-8"), args.tokenizer), counts)
    elif not counts.is_file():
        write_bytes(counts, (KEPT / counts.name).read_bytes())
    found = measure_all(transitions(counts))
    write_json(args.out / "chain.json", found)
    plot_chain(found, args.out / "chain.png")
    write_bytes(args.out / "README.md", write_page(found).encode())
    print(args.out / "README.md")


if __name__ == "__main__":
    sys.exit(main())
