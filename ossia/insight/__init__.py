"""The cost and the look of an architecture, from its config alone."""
