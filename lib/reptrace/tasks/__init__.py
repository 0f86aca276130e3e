"""lm-eval's tasks and the loss on a model in memory, and accuracy beside the geometry."""
