"""Experts read from disk on demand, for checkpoints larger than memory."""
