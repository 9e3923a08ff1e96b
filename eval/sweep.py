"""`python -m eval.sweep`; the body is in dera_jax/commands/sweep.py."""

from dera_jax.commands.door import door

main = door("sweep")

if __name__ == "__main__":
    raise SystemExit(main())
