"""Ways to a whole answer of high reward: candidates of the realigned policy, and the scores they are ranked by."""
