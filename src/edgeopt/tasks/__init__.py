"""What a model is for: labelled data, and metrics over its answers."""
