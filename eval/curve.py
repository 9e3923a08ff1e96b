"""`python -m eval.curve`; the body is in dera_jax/commands/curve.py."""

from dera_jax.commands.door import door

main = door("curve")

if __name__ == "__main__":
    raise SystemExit(main())
