"""From files and data sets to prompts and training examples: as text, as ids, as arrays."""
