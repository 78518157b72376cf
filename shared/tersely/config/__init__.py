"""Recipes: one TOML file, checked by pydantic, with `--set` and environment on top.

schema.py says what a recipe may hold, load.py puts the layers together and remembers where each value came from,
nearest.py finds what a mistyped name was meant to be.
"""

from tersely.config.load import LoadedRecipe, Source, load_recipe, recipe_from_json
from tersely.config.schema import Recipe

__all__ = ["LoadedRecipe", "Recipe", "Source", "load_recipe", "recipe_from_json"]
