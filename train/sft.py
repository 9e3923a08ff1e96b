"""`python -m train.sft`; the body is in dera_jax/commands/sft.py."""

from dera_jax.commands.door import door

main = door("sft")

if __name__ == "__main__":
    raise SystemExit(main())
