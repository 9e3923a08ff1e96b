"""What a completion is worth: text, slots, reward models, judges, the user's functions."""
