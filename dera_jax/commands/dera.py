"""dera: decoding-time realignment on the command line.

dera sweep      decode at many strengths          dera generate   one prompt, strengths side by side
dera score      rewards, pairs, divergences       dera plot       figures and tables of sweeps
dera bench      ratios in one run                 dera sft, rlhf  train
"""

import importlib
import sys

COMMANDS = ("sweep", "generate", "score", "plot", "bench", "sft", "rlhf")


def main() -> int:
    """Runs `dera COMMAND …`, which is `python -m eval.COMMAND` or `python -m train.COMMAND`."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"error: unknown command {words[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"dera_jax.commands.{words[0]}").main(words[1:])


if __name__ == "__main__":
    raise SystemExit(main())
