"""`python -m eval.bench`; the body is in dera_jax/commands/bench.py."""

from dera_jax.commands.bench import main

if __name__ == "__main__":
    raise SystemExit(main())
