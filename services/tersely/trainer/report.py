"""report.json: what a run did, from its own files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersely.config import Recipe
from tersely.telemetry.events import read_events
from tersely.trainer.evaluation import examples, paired
from tersely.trainer.run_directory import RunDirectory
from tersely.types import WeightsLabel

_CURVE = ("step", "rewards", "mean_tokens", "mean_abs_length_error", "within_5", "truncated", "entropy", "step_seconds")
_EXAMPLES = 3


def build_report(
    directory: RunDirectory, recipe: Recipe, *, initial: WeightsLabel, final: WeightsLabel, groups: Mapping[str, int]
) -> dict[str, Any]:
    """The report as a JSON object (documented in docs/protocol.md)."""
    events = list(read_events(directory.file("events.jsonl")))
    began = next(event["process_started"] for event in events if event["kind"] == "run_started")
    steps = [event for event in events if event["kind"] == "step_finished"]
    before, after = (directory.read_json(f"evaluation-{name}.json") for name in ("before", "after"))
    held_out: dict[str, Any] = {
        name: {"greedy": result["greedy"], "sampled": result["sampled"]}
        for name, result in (("before", before), ("after", after))
        if result is not None
    }
    if before is not None and after is not None:
        held_out["paired"] = paired(before["rows"], after["rows"])
    return {
        "run_id": next(event["run_id"] for event in events if event["kind"] == "run_started"),
        "target_tokens": recipe.length.target_tokens,
        "max_completion_tokens": recipe.max_completion_tokens,
        "steps": len(steps),
        "seconds": events[-1]["time"] - began,
        "seconds_to_first_step": steps[0]["time"] - began if steps else None,
        "model": recipe.model.name,
        "data": recipe.data.source,
        "held_out": held_out,
        "groups": dict(groups),
        "initial_weights_sha256": initial.weights_sha256,
        "final_weights_sha256": final.weights_sha256,
        "policy_version": final.policy_version,
        "curve": [{key: event.get(key) for key in _CURVE} for event in steps],
        "examples": examples(before["rows"], after["rows"], _EXAMPLES) if before and after else [],
        "recipe": recipe.model_dump(mode="json"),
    }
