"""`python -m eval.plan`; the body is in dera_jax/commands/plan.py."""

from dera_jax.commands.door import door

main = door("plan")

if __name__ == "__main__":
    raise SystemExit(main())
