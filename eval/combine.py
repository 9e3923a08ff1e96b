"""`python -m eval.combine`; the body is in dera_jax/commands/combine.py."""

from dera_jax.commands.door import door

main = door("combine")

if __name__ == "__main__":
    raise SystemExit(main())
