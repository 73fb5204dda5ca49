"""The corpus: rows read from files, each rendered by the model's chat template into tokens and segments."""
