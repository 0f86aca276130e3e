"""Small suites trained from scratch, and geometry during anybody's training."""
