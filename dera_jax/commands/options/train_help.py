"""What the options say that training commands have from `TrainConfig` and `RunConfig`."""

HELP = {
    "learning_rate": ("RATE", "peak (default %(default)g, which is TRL's)"),
    "batch_size": ("N", "sequences or pairs in an update, over all devices (default %(default)s)"),
    "gradient_accumulation_steps": ("N", "parts of a batch, one after the other (default %(default)s)"),
    "warmup_ratio": ("SHARE", "of the steps (default %(default)s)"),
    "warmup_steps": ("N", "steps, instead of --warmup-ratio; below 1 a share too (default: the ratio)"),
    "weight_decay": ("W", "of AdamW (default %(default)s)"),
    "adam_beta1": ("B", "decay of its first moment (default %(default)s)"),
    "adam_beta2": ("B", "of the second (default %(default)s)"),
    "adam_epsilon": ("E", "beside the root of the second (default %(default)g)"),
    "max_grad_norm": ("NORM", "clip gradients (default %(default)s)"),
    "eval_steps": ("N", "steps between evaluations (default: only after the last)"),
    "save_steps": ("N", "steps between checkpoints (default %(default)s)"),
    "save_total_limit": ("N", "checkpoints kept (default %(default)s)"),
}
"""By setting: what stands for its value, and what it is."""
