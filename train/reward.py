"""`python -m train.reward`; the body is in dera_jax/commands/reward.py."""

from dera_jax.commands.door import door

main = door("reward")

if __name__ == "__main__":
    raise SystemExit(main())
