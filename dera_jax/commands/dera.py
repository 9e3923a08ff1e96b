"""dera: decoding-time realignment on the command line.

  dera sweep       decode at many strengths
  dera generate    one prompt, strengths side by side
  dera score       rewards of stored rows, preference pairs, divergences
  dera compare     win rates of one run over another, by a judge
  dera tune        the best strength, and β to retrain at
  dera plot        figures and tables of sweeps
  dera combine     the weight-combined model of a pair
  dera lm_eval     lm-evaluation-harness at many strengths
  dera bench       speed, as ratios in one run
  dera plan        a TPU that is not here: does it fit, how fast
  dera sft         train on text
  dera reward      train a reward model on preferences
  dera dpo         align by preferences
  dera rlhf        align by a reward

Each has its own --help.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = "sweep generate score compare tune plot combine lm_eval bench plan sft reward dpo rlhf".split()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `dera COMMAND …`, which is `python -m eval.COMMAND` or `python -m train.COMMAND`."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if not words or words[0] not in COMMANDS:
        found = f"unknown command {words[0]!r}" if words else "no command"
        print(f"error: {found}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"dera_jax.commands.{words[0]}")
    if argv is not None:
        return command.main(words[1:])
    # The command is the process's own.
    sys.argv = [f"dera {words[0]}", *words[1:]]
    return command.main()


if __name__ == "__main__":
    raise SystemExit(main())
