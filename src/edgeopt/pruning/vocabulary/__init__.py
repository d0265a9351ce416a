"""Vocabulary pruning: tokens, their tables, and the tokenizer's files."""
