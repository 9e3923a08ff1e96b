"""`python -m train.reward`; the body is in dera_jax/commands/reward.py."""

from dera_jax.commands.reward import main

if __name__ == "__main__":
    raise SystemExit(main())
