"""`python -m eval.lm_eval`; the body is in dera_jax/commands/lm_eval.py."""

from dera_jax.commands.lm_eval import main

if __name__ == "__main__":
    raise SystemExit(main())
