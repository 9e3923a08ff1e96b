"""`python -m eval.audit`; the body is in dera_jax/commands/audit.py."""

from dera_jax.commands.door import door

main = door("audit")

if __name__ == "__main__":
    raise SystemExit(main())
