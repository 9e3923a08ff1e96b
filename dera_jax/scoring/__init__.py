"""Given completions: log-probabilities at every strength, KL, preference pairs, lm-eval."""
