"""From a model's name to its arrays: where the files are, what they are called, what is in them."""
