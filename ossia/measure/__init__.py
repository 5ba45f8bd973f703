"""What this machine does, measured: its memory and arithmetic, and a model's speed beside them."""
