"""Decoding-time realignment of language models in JAX: one aligned model, every strength.

policies = load_policies("org/sft-model", "org/aligned-model")
for completion in generate(policies, ["Once upon a time"], lambda_=0.5):
    print(completion.text)
"""

import importlib
import sys
from types import ModuleType

_HOMES = {
    "Policy": "policies",
    "load_policies": "policies",
    "load_policy": "policies",
    "save_policy": "policies",
    "Prompt": "prompts",
    "load_prompts": "prompts",
    "Completion": "generate",
    "generate": "conversation",
    "Scored": "score",
    "score": "score",
    "sweep": "sweep",
    "parse_strengths": "strengths",
    "parse_rewards": "rewards",
    "read_rows": "results",
    "mix_logits": "realign",
    "strength_weights": "realign",
    "log_normalizer": "realign",
    "effective_beta": "realign",
}
"""Public names and the modules they come from, which are imported when a name is used: JAX and transformers
take seconds, and what needs neither (help, a mistyped option, a table) does not wait for them."""

__all__ = sorted(_HOMES)

__version__ = "0.1.0"


class _Package(ModuleType):
    """This package: names of `_HOMES` are what they say, though some modules have the same names."""

    def __getattr__(self, name: str):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value) -> None:
        # Importing dera_jax.sweep would put the module in the place of the function.
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
