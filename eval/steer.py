"""`python -m eval.steer`; the body is in dera_jax/commands/steer.py."""

from dera_jax.commands.door import door

main = door("steer")

if __name__ == "__main__":
    raise SystemExit(main())
