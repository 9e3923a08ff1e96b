"""Decoding-time realignment of language models in JAX: one aligned model, every strength.

policies = load_policies("org/sft-model", "org/aligned-model")
for completion in generate(policies, ["Once upon a time"], lambda_=0.5):
    print(completion.text)
"""

from dera_jax.conversation import generate
from dera_jax.generate import Completion
from dera_jax.policies import Policy, load_policies, load_policy, save_policy
from dera_jax.prompts import Prompt, load_prompts
from dera_jax.realign import effective_beta, log_normalizer, mix_logits, strength_weights
from dera_jax.results import read_rows
from dera_jax.rewards import parse_rewards
from dera_jax.score import Scored, score
from dera_jax.strengths import parse_strengths
from dera_jax.sweep import sweep

__all__ = [
    "Completion",
    "Policy",
    "Prompt",
    "Scored",
    "effective_beta",
    "generate",
    "load_policies",
    "load_policy",
    "load_prompts",
    "log_normalizer",
    "mix_logits",
    "parse_rewards",
    "parse_strengths",
    "read_rows",
    "save_policy",
    "score",
    "strength_weights",
    "sweep",
]

__version__ = "0.1.0"
