"""One loop: requests in, completions out, any strengths in a batch."""
