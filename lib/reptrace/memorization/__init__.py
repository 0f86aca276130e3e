"""What the training text says comes next (the infinity-gram model), against what a model says."""
