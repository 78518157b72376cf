"""report.json: what a run did, from its own files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersely.config import Recipe
from tersely.config.stages import stage_bounds
from tersely.telemetry.events import read_events
from tersely.trainer.evaluation import examples, paired
from tersely.trainer.run_directory import RunDirectory
from tersely.types import WeightsLabel

_CURVE = (
    "step",
    "rewards",
    "mean_tokens",
    "mean_abs_length_error",
    "within_5",
    "truncated",
    "entropy",
    "step_seconds",
    "stage",
)
_ALARM = ("name", "step", "message", "cause", "setting", "change", "value", "limit")
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
    during = [directory.read_json(path.name) for path in sorted(directory.path.glob("evaluation-step-*.json"))]
    if during:
        held_out["during"] = [
            {key: result[key] for key in ("step", "policy_version", "greedy", "sampled")} for result in during
        ]
    return {
        "run_id": next(event["run_id"] for event in events if event["kind"] == "run_started"),
        "target_tokens": None if recipe.length.target_range else recipe.length.target_tokens,
        "target_range": recipe.length.target_range,
        "max_completion_tokens": recipe.max_completion_tokens,
        "steps": len(steps),
        "seconds": events[-1]["time"] - began,
        "seconds_to_first_step": steps[0]["time"] - began if steps else None,
        "model": recipe.model.name,
        "data": recipe.data.source,
        "held_out": held_out,
        "stages": [
            {
                "name": stage.name,
                "first_step": first,
                "last_step": last,
                "first_weights": recipe.reward_weights(first),
                "last_weights": recipe.reward_weights(last),
            }
            for stage, first, last in stage_bounds(recipe.stages)
        ],
        "best": directory.read_json("best.json"),
        "alarms": [{key: event[key] for key in _ALARM if key in event} for event in events if event["kind"] == "alarm"],
        "roll_backs": [
            {key: event[key] for key in ("step", "to_step", "policy_version", "reason")}
            for event in events
            if event["kind"] == "rolled_back"
        ],
        "groups": dict(groups),
        "initial_weights_sha256": initial.weights_sha256,
        "final_weights_sha256": final.weights_sha256,
        "policy_version": final.policy_version,
        "curve": [{key: event.get(key) for key in _CURVE} for event in steps],
        "examples": examples(before["rows"], after["rows"], _EXAMPLES) if before and after else [],
        "recipe": recipe.model_dump(mode="json"),
    }
