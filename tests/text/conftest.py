"""How hypothesis tries texts."""

from hypothesis import settings

# The same examples in every run, so that a failure is one that anybody can repeat.
settings.register_profile("ossia", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("ossia")
