"""Recipes: how the model inside the package was made; not part of the installed package."""
