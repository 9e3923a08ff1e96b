"""`python -m eval.lm_eval`; the body is in dera_jax/commands/lm_eval.py."""

from dera_jax.commands.door import door

main = door("lm_eval")

if __name__ == "__main__":
    raise SystemExit(main())
