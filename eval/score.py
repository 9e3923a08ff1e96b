"""`python -m eval.score`; the body is in dera_jax/commands/score.py."""

from dera_jax.commands.score import main

if __name__ == "__main__":
    raise SystemExit(main())
