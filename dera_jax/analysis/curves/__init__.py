"""One smooth curve over all strengths, from the completions of a few: pooled importance weights."""
