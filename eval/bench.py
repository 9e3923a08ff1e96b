"""`python -m eval.bench`; the body is in dera_jax/commands/bench.py."""

from dera_jax.commands.door import door

main = door("bench")

if __name__ == "__main__":
    raise SystemExit(main())
