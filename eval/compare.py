"""`python -m eval.compare`; the body is in dera_jax/commands/compare.py."""

from dera_jax.commands.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
