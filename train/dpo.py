"""`python -m train.dpo`; the body is in dera_jax/commands/dpo.py."""

from dera_jax.commands.door import door

main = door("dpo")

if __name__ == "__main__":
    raise SystemExit(main())
