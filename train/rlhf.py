"""`python -m train.rlhf`; the body is in dera_jax/commands/rlhf.py."""

from dera_jax.commands.door import door

main = door("rlhf")

if __name__ == "__main__":
    raise SystemExit(main())
