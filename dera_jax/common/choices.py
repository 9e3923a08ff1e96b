"""Words that options take. They stand here because help has to list them without JAX."""

KV_CACHES = ("auto", "bfloat16", "int8")
"""How keys and values of earlier tokens are kept; auto: in the type of the activations."""
REPORTERS = ("none", "tensorboard", "wandb", "trackio")
"""Where a training may tell its metrics."""
QUANTIZATIONS = ("int8", "nf4")
ATTENTIONS = ("auto", "einsum", "splash", "cudnn")
