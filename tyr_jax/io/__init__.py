"""Formats of checkpoints: Hugging Face and GGUF, weights and tokenizers."""
