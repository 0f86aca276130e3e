"""A model, opened on its device, and token sequences -> features and scores."""
