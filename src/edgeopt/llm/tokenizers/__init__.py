"""Tokenizers: the files beside a model become GGUF's ``tokenizer.ggml.*`` keys."""
