"""Hypothesis runs the same examples each time."""

from hypothesis import settings

# Deterministic, so that anybody can repeat a failure.
settings.register_profile("ossia", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("ossia")
