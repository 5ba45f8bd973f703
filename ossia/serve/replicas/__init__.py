"""Replicas of a model behind one endpoint, with Ray Serve."""
