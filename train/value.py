"""`python -m train.value`; the body is in dera_jax/commands/value.py."""

from dera_jax.commands.door import door

main = door("value")

if __name__ == "__main__":
    raise SystemExit(main())
