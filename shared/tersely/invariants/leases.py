"""Leases: what a dead node holds is taken over in time."""

from __future__ import annotations

from typing import Any

from tersely.invariants.evidence import Evidence
from tersely.invariants.finding import Finding

_SLACK_SECONDS = 3.0
"""The trainer looks once a second, and heartbeats, which tell who is free, come every two."""


def leases(evidence: Evidence) -> Finding:
    """No lease outlives its node by more than twice its length, while another node is free to take it."""
    found = Finding(
        "leases",
        "no lease of a dead node is left for longer than 2 x queue.lease_seconds while another node is free to take it",
        "expired leases",
    )
    watched = list(evidence.of("leases_watched"))
    if not watched:
        return found.not_recorded("leases are not recorded by this run: it began before they were, or never got so far")
    seconds = evidence.setting("queue", "lease_seconds")
    for event in evidence.of("leases_watched", "lease_expired", "lease_recovered", "lease_outlived"):
        if event.kind == "leases_watched":
            seconds = event["lease_seconds"] or seconds
        elif event.kind == "lease_expired":
            found.checked += 1
        elif _outlived(event["held_seconds"], event["free_seconds"], seconds):
            meaning = (
                f"{event['node_id']} has held group {event['group_id']} in {event['stream']} for"
                f" {event['held_seconds']:.0f} s since its last word, {event['free_seconds']:.0f} s of them beside a"
                f" free node; a lease is {seconds:g} s"
            )
            found.breach(event.where, meaning)
    starts = len(list(evidence.of("run_started", "run_resumed")))
    found.notes.append(f"watched by {len(watched)} of {starts} trainers of the run")
    return found


def _outlived(held: Any, free: Any, lease: Any) -> bool:
    if not all(isinstance(value, int | float) for value in (held, free, lease)):
        return False
    return bool(held > 2 * lease + _SLACK_SECONDS and free > lease + _SLACK_SECONDS)
