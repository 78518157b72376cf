"""Where a policy comes from, as the run directory tells it: for its model card and `tersely.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tersely.config import Recipe
from tersely.types import WeightsLabel

_PACKAGES = ("tersely", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Provenance:
    """A policy's origin.

    Attributes:
        run_id: Run that trained it.
        step: Steps trained.
        label: Version and hash of the published weights.
        recipe: Settings of the run.
        before: Evaluation of the initial weights, as in evaluation-before.json; None where there was none.
        after: Evaluation of these weights.
        versions: Of tersely and of what it trained with.
    """

    run_id: str
    step: int
    label: WeightsLabel
    recipe: Recipe
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The content of `tersely.json`."""
        return {
            "run_id": self.run_id,
            "step": self.step,
            "policy_version": self.label.policy_version,
            "weights_sha256": self.label.weights_sha256,
            "versions": dict(self.versions),
            "recipe": public_recipe(self.recipe),
        }


def provenance_of(run_dir: Path, recipe: Recipe, run_id: str, step: int, label: WeightsLabel) -> Provenance:
    """Collects what a run directory knows of a version; an evaluation belongs to it if the hash does."""
    evaluations = [json.loads(path.read_text()) for path in sorted(run_dir.glob("evaluation-*.json"))]
    of_these = [found for found in evaluations if found["weights_sha256"] == label.weights_sha256]
    before = [found for found in evaluations if found["name"] == "before"]
    return Provenance(
        run_id=run_id,
        step=step,
        label=label,
        recipe=recipe,
        before=before[0] if before else None,
        after=of_these[0] if of_these and step else None,
        versions={name: metadata.version(name) for name in _PACKAGES},
    )


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe in full, without the addresses of this machine and the folders that paths lead through."""
    tree = recipe.model_dump(mode="json")
    tree["model"]["name"] = _last_part(tree["model"]["name"])
    tree["data"]["source"] = _last_part(tree["data"]["source"])
    tree["queue"]["url"] = tree["judge"]["endpoint"] = None
    return tree


def _last_part(name: str) -> str:
    return Path(name).name if name.startswith(("/", "~", ".")) else name
