"""`python -m eval.optimum`; the body is in dera_jax/commands/optimum.py."""

from dera_jax.commands.door import door

main = door("optimum")

if __name__ == "__main__":
    raise SystemExit(main())
