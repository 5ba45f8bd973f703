"""What an architecture costs and how it looks, from its config."""
