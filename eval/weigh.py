"""`python -m eval.weigh`; the body is in dera_jax/commands/weigh.py."""

from dera_jax.commands.door import door

main = door("weigh")

if __name__ == "__main__":
    raise SystemExit(main())
