"""The base of every table of a recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the recipe: frozen, and closed to keys it does not know.

    inf and nan are refused, too: recipes go to nodes and into run directories as JSON, which has no word for them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
