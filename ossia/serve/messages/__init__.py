"""/v1/messages, in Anthropic's shape."""
