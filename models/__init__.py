"""What is computed: decoder-only transformers, their KV cache, their weights, and decoding."""
