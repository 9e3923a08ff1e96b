"""How fast it is here, as ratios."""
