"""dera: decoding-time realignment on the command line.

  dera sweep       decode at many strengths
  dera generate    one prompt, strengths side by side
  dera score       rewards of stored rows, preference pairs, divergences
  dera compare     win rates of one run over another, by a judge
  dera tune        the best strength, and β to retrain at
  dera plot        figures and tables of sweeps
  dera curve       one smooth curve over λ from the completions of a few strengths
  dera optimum     what perfect training would give, and how far a model is from it
  dera weigh       a strength for each prompt, from how well models predict it
  dera audit       strength, temperature and truncation from completions
  dera steer       steering vectors from contrastive pairs
  dera serve       a server with OpenAI's routes and a strength per request
  dera combine     the weight-combined model of a pair
  dera lm_eval     lm-evaluation-harness at many strengths
  dera bench       speed, as ratios in one run
  dera plan        a TPU that you do not have: does it fit, how fast
  dera sft         train on text
  dera reward      train a reward model on preferences
  dera value       train a value head: what every next word is worth
  dera dpo         align by preferences
  dera rlhf        align by a reward

Each has its own --help. dera --version prints the version.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

import dera_jax
from dera_jax.commands.door import begin
from dera_jax.commands.process.endings import command
from dera_jax.common.shown import shown
from dera_jax.common.spelling import COMMANDS, called_as_dera


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `dera COMMAND …`, which is `python -m eval.COMMAND` or `python -m train.COMMAND`."""
    if argv is None:
        begin()
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] not in COMMANDS:
        return _without_command(words)
    if argv is None:
        # The command is the process's own.
        sys.argv = [f"dera {words[0]}", *words[1:]]
    with called_as_dera():
        return run(words[0], None if argv is None else words[1:])


def run(name: str, words: Sequence[str] | None) -> int:
    """Runs a command in this process and returns its exit code; what was wrong, it has said itself.

    Args:
      name: one of `COMMANDS`.
      words: of its command line, without its name; None takes those of this process.
    """
    return importlib.import_module(f"dera_jax.commands.{name}").main(words)


@command
def _without_command(words: Sequence[str] | None) -> None:
    """Says what there is, or what was not understood."""
    if words and words[0] in ("-h", "--help"):
        print(__doc__.strip())
    elif words and words[0] == "--version":
        print(f"dera_jax {dera_jax.__version__}")
    else:
        raise ValueError(f"{_not_understood(words)}; expected one of {', '.join(COMMANDS)}")


def _not_understood(words: Sequence[str]) -> str:
    if not words:
        return "no command"
    close = difflib.get_close_matches(words[0].replace("-", "_"), COMMANDS, 1)
    return f"unknown command '{shown(words[0], 60)}'" + (f" (did you mean {close[0]}?)" if close else "")


if __name__ == "__main__":
    raise SystemExit(main())
