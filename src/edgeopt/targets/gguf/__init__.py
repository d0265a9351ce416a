"""GGUF files: language models for llama.cpp."""
