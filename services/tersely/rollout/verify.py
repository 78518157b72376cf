"""Proof that an engine samples from the weights it was given: the log-probs of the probe in their manifest."""

from __future__ import annotations

import math

from tersely.errors import WeightsNotApplied
from tersely.rollout.engines.base import Engine
from tersely.rollout.fetching import FetchedWeights


def check_probe(engine: Engine, fetched: FetchedWeights) -> float | None:
    """Compares the engine's log-probs of the probe with the learner's.

    Args:
        engine: Holds the weights; what runs in it goes on afterwards.
        fetched: The same weights, and what the trainer said about them.

    Returns:
        Difference, nats: the largest, or in half precision the mean; None: no probe, or the engine has no model.

    Raises:
        WeightsNotApplied: They differ by more than the engine's tolerance, or the engine can't tell them.
    """
    can, manifest = engine.capabilities(), fetched.manifest
    if can.dtype == "none" or manifest is None or not manifest.HasField("probe"):
        return None
    probe = manifest.probe
    try:
        found = engine.score(list(probe.token_ids))
    except Exception as error:
        raise WeightsNotApplied(
            f"Engine {can.name} was given {fetched.label}, but could not score the probe prompt: "
            f"{type(error).__name__}: {error}",
            "Nothing was generated with them. See the worker's log; another --engine may run this model.",
        ) from error
    if len(found) != len(probe.logprobs):
        difference = math.inf
    else:
        differences = [abs(a - b) for a, b in zip(found, probe.logprobs, strict=True)] or [0.0]
        difference = sum(differences) / len(differences) if can.compares_mean else max(differences)
    if not difference <= can.logprob_tolerance:
        raise WeightsNotApplied(
            f"Engine {can.name} was given {fetched.label}, but its log-probs of the probe prompt differ from the "
            f"learner's by {difference:.3g} nats; {can.logprob_tolerance:.3g} is allowed ({can.dtype}).",
            "Nothing was generated with them. Restart the worker; if it stays, use another engine and report it.",
        )
    return difference
