"""`python -m eval.plan`; the body is in dera_jax/commands/plan.py."""

from dera_jax.commands.plan import main

if __name__ == "__main__":
    raise SystemExit(main())
