"""`python -m eval.score`; the body is in dera_jax/commands/score.py."""

from dera_jax.commands.door import door

main = door("score")

if __name__ == "__main__":
    raise SystemExit(main())
