"""`python -m eval.generate`; the body is in dera_jax/commands/generate.py."""

from dera_jax.commands.door import door

main = door("generate")

if __name__ == "__main__":
    raise SystemExit(main())
