"""Checkpoints made from others: LoRA and its adapters, merging, quantization."""
