"""How the models' logits become one law for the next token."""
