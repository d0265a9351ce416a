"""Language models: a Hugging Face folder (or a GGUF) described as GGUF will hold it."""
