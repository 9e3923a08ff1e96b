"""`python -m eval.compare`; the body is in dera_jax/commands/compare.py."""

from dera_jax.commands.door import door

main = door("compare")

if __name__ == "__main__":
    raise SystemExit(main())
