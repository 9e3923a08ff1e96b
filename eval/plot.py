"""`python -m eval.plot`; the body is in dera_jax/commands/plot.py."""

from dera_jax.commands.door import door

main = door("plot")

if __name__ == "__main__":
    raise SystemExit(main())
