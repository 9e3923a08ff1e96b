"""`python -m eval.tune`; the body is in dera_jax/commands/tune.py."""

from dera_jax.commands.door import door

main = door("tune")

if __name__ == "__main__":
    raise SystemExit(main())
