"""What a model file is made of: the parts that `inspect` puts together."""
