"""Decoding-time realignment of language models in JAX: one aligned model, every strength.

policies = load_policies("org/sft-model", "org/aligned-model")
for completion in generate(policies, ["Once upon a time"], lambda_=0.5):
    print(completion.text)
"""

import importlib
from typing import TYPE_CHECKING

from dera_jax.common.version import __version__ as __version__

if TYPE_CHECKING:
    from dera_jax.analysis.plots import plot_sweep as plot_sweep
    from dera_jax.analysis.summaries import summarize as summarize
    from dera_jax.analysis.tables import format_table as format_table
    from dera_jax.data.prompts import Prompt as Prompt
    from dera_jax.data.prompts import load_prompts as load_prompts
    from dera_jax.decoding.generate import generate as generate
    from dera_jax.decoding.request import Completion as Completion
    from dera_jax.policies.load import load_policies as load_policies
    from dera_jax.policies.load import load_policy as load_policy
    from dera_jax.policies.policy import Policy as Policy
    from dera_jax.policies.save import save_policy as save_policy
    from dera_jax.realign import effective_beta as effective_beta
    from dera_jax.realign import log_normalizer as log_normalizer
    from dera_jax.realign import mix_logits as mix_logits
    from dera_jax.realign import strength_weights as strength_weights
    from dera_jax.results.reading import read_rows as read_rows
    from dera_jax.rewards.registry import parse_rewards as parse_rewards
    from dera_jax.scoring.score import Scored as Scored
    from dera_jax.scoring.score import score as score
    from dera_jax.search.best_of import best_of as best_of
    from dera_jax.search.blocks import blocks as blocks
    from dera_jax.search.lookahead import lookahead as lookahead
    from dera_jax.strengths import parse_strengths as parse_strengths
    from dera_jax.sweeps.run import sweep as sweep

_PLACES = {
    "Completion": "decoding.request",
    "Policy": "policies.policy",
    "Prompt": "data.prompts",
    "Scored": "scoring.score",
    "best_of": "search.best_of",
    "blocks": "search.blocks",
    "effective_beta": "realign",
    "format_table": "analysis.tables",
    "generate": "decoding.generate",
    "load_policies": "policies.load",
    "load_policy": "policies.load",
    "load_prompts": "data.prompts",
    "log_normalizer": "realign",
    "lookahead": "search.lookahead",
    "mix_logits": "realign",
    "parse_rewards": "rewards.registry",
    "parse_strengths": "strengths",
    "plot_sweep": "analysis.plots",
    "read_rows": "results.reading",
    "save_policy": "policies.save",
    "score": "scoring.score",
    "strength_weights": "realign",
    "summarize": "analysis.summaries",
    "sweep": "sweeps.run",
}
"""Public names and where they are, from where each is imported when it is first used: JAX and transformers take
seconds, and what needs neither (help, a mistyped option, a table) does not wait for them."""

__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
