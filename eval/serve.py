"""`python -m eval.serve`; the body is in dera_jax/commands/serve.py."""

from dera_jax.commands.door import door

main = door("serve")

if __name__ == "__main__":
    raise SystemExit(main())
