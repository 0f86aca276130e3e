"""Which checkpoints there are, by name, and getting their weights."""
