"""A model and token sequences -> features and scores; alone touches the device."""
