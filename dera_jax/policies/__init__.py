"""From a model's name to a policy (configuration, parameters, tokenizer), and back to a folder."""
