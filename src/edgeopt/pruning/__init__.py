"""What is taken out of a module: channels and heads, blocks, single weights, tokens."""
