"""Commands that a manifest recorded: what of them is repeated, and what only if the user names it again.

A model or a run may come from anybody, and its manifest says what its maker liked. So its words are data:
the command's own parser reads them, only the options listed here are repeated, and code that they name
(a reward of the user's, a rule) runs only where the command line of today names the very same.
"""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from dera_jax.analysis.tuning.retraining import replaced
from dera_jax.commands import dpo, rlhf, sweep
from dera_jax.commands.options import cli
from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.rules.known import known_name
from dera_jax.search.notation import EXACT, FIGURES, split_draw, split_score

COMMANDS = {"train.dpo": dpo, "train.rlhf": rlhf, "eval.sweep": sweep}
"""All that is ever repeated."""
_TRAINING = """
model reference data eval-data out beta seed dtype mesh lora-r lora-alpha lora-target-modules chat-template
chat-template-kwargs
learning-rate batch-size gradient-accumulation-steps max-steps warmup-ratio warmup-steps weight-decay adam-beta1
adam-beta2 adam-epsilon max-grad-norm ema-decay eval-steps save-steps save-total-limit lr-scheduler-type
gradient-checkpointing save-only-model
"""
REPEATED = {
    "train.dpo": f"""{_TRAINING} eval-share max-length truncation-mode stop num-train-epochs loss label-smoothing
        sync-ref-model ref-model-mixup-alpha ref-model-sync-steps desirable-weight undesirable-weight""",
    "train.rlhf": f"""{_TRAINING} num-prompts reward reward-weights algorithm target-kl kl-horizon num-ppo-epochs
        num-mini-batches cliprange cliprange-value vf-coef gamma lam kl-estimator value-lam value-head
        value-learning-rate value-warmup-steps certificate-samples num-samples max-new-tokens stop temperature""",
    "eval.sweep": """reference aligned lambda prompts reward rule num-prompts num-samples beta out preset dtype
        chat-template reference-chat-template reference-instruction aligned-instruction chat-template-kwargs quantize
        steer mesh max-new-tokens temperature top-k top-p stop seed kv-cache share draft
        draft-length draw limit-means max-tries trace prefix-cache rows""",
}
"""Options that are repeated, by command: models, data and numbers; `reward`, `rule`, `draw` are looked into."""
LEFT_OUT = (
    "config", "coordinator", "num-processes", "process-id", "coordinator-timeout", "dry-run", "report-to",
    "push-to-hub", "hub-private", "models", "weights", "sweep",
)  # fmt: skip
"""Options that say where and how it ran, not what it did, or that runs record as those they stand for; what a --config
file held is repeated."""
REWARDS = ("length", "lexicon", "keywords", "concepts", "slots", "model")
"""Kinds of rewards that run nobody's code and ask no server."""


@dataclass(frozen=True)
class Named:
    """What the command line of today names, in the words of the recorded one."""

    rewards: tuple[str, ...] = ()
    rule: str | None = None
    draw: str | None = None


def split_rewards(text: str | None) -> tuple[str, ...]:
    """Returns the specifications between commas."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def repeatable(module: str, words: Sequence[str], where: str, named: Named) -> list[str]:
    """Returns recorded words as they may be run: the options of their `--config` file among them.

    Args:
      module: a key of `COMMANDS`.
      where: they were recorded, for errors.

    Raises:
      ValueError: they hold an option that is not repeated, or code that is not named today.
    """
    known = [*REPEATED[module].split(), *LEFT_OUT]
    parser, args = _parse(module, words, where, known)
    if file := getattr(args, "config", None):
        words = [*cli.config_words(parser, file, words), *words]
        _parse(module, words, where, known)
    words = replaced(words, dict.fromkeys(LEFT_OUT))
    _check(module, words, where, named)
    return words


def _check(module: str, words: Sequence[str], where: str, named: Named) -> None:
    _, args = _parse(module, words, where, REPEATED[module].split())
    for spec in split_rewards(getattr(args, "reward", None)):
        if spec not in named.rewards:
            _check_reward(module, spec, where)
    rule = getattr(args, "rule", None)
    if rule is not None and rule != named.rule and known_name(rule) is None:
        raise _unnamed(module, where, f"--rule={rule}")
    draw = getattr(args, "draw", None)
    if draw not in (None, "mixture", named.draw):
        _check_draw(module, draw, where)


def _check_reward(module: str, spec: str, where: str) -> None:
    """Raises ValueError where a reward that is not named today is more than a computation on data."""
    kind = re.sub("^[A-Za-z0-9_.-]+=", "", spec).partition(":")[0]  # behind its name, if it has one
    if kind == "python":
        raise _unnamed(module, where, f"--reward={spec}")
    if kind not in REWARDS:
        raise _refusal(module, where, f"has the reward {shown(spec, 100)}, of a kind that is not repeated")


def _check_draw(module: str, draw: str, where: str) -> None:
    """Raises ValueError where a draw that is not named today goes by more than a computation on data."""
    if draw.partition(":")[0] in EXACT:
        return  # it has no score
    try:
        scores = split_score(split_draw(draw)[2])
    except ValueError as error:
        raise _refusal(module, where, f"cannot be repeated: --draw: {error}") from None
    for spec, _ in scores:
        kind = spec.partition(":")[0]
        if kind == "python":
            raise _unnamed(module, where, f"--draw={draw}")
        if kind not in (*REWARDS, *FIGURES):
            raise _refusal(module, where, f"has the score {shown(spec, 100)}, of a kind that is not repeated")


def line(module: str, words: Sequence[str]) -> str:
    """Returns a command as the user would call it."""
    return shown(f"{spelled(module.partition('.')[2])} {shlex.join(words)}")


def _parse(
    module: str, words: Sequence[str], where: str, known: Sequence[str]
) -> tuple[cli.Parser, argparse.Namespace]:
    """Returns the command's parser, and what it says of words that hold only `known` options.

    Raises:
      ValueError: they hold others (--help would end everything), or broken ones.
    """
    parser = COMMANDS[module].make_parser()
    for name in [name for name in parser._option_string_actions if name.removeprefix("--") not in known]:
        del parser._option_string_actions[name]

    def refuse(message: str) -> NoReturn:
        raise _refusal(module, where, f"cannot be repeated: {shown(message, 300)}")

    parser.error = refuse
    return parser, parser.parse_args(list(words))


def _refusal(module: str, where: str, problem: str) -> ValueError:
    return ValueError(f"--retrain: the {module} command recorded in {shown(where, 200)} {problem}")


def _unnamed(module: str, where: str, word: str) -> ValueError:
    again = shown(shlex.quote(word), 300)
    return _refusal(module, where, f"would run code; if you trust it, name it here too: {again}")
