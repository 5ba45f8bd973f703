"""Training data: sources, vocabulary, token shards, conversations and packing."""
