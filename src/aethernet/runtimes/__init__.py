"""What executes a model: one class for each runtime."""
