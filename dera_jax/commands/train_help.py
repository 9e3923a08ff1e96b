"""What the options say that training commands have from `TrainConfig` and `RunConfig`."""

HELP = {
    "learning_rate": ("RATE", "peak (default %(default)g, which is TRL's)"),
    "batch_size": ("N", "sequences or pairs in an update, over all devices (default %(default)s)"),
    "gradient_accumulation_steps": ("N", "parts of a batch, one after the other (default %(default)s)"),
    "warmup_ratio": ("SHARE", "of the steps (default %(default)s)"),
    "weight_decay": ("W", "of AdamW (default %(default)s)"),
    "max_grad_norm": ("NORM", "clip gradients (default %(default)s)"),
    "eval_steps": ("N", "steps between evaluations (default: only after the last)"),
    "save_steps": ("N", "steps between checkpoints (default %(default)s)"),
    "save_total_limit": ("N", "checkpoints kept (default %(default)s)"),
}
"""By setting: what stands for its value, and what it is."""
