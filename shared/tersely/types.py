"""Names for the ids and labels that everything else passes around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from tersely.v1 import common_pb2

RunId = NewType("RunId", str)
"""Random id of one run, e.g. "r-5f3a9c01"."""

GroupId = NewType("GroupId", str)
"""Hash of (run id, issue number, prompt id), e.g. "9d2c41..." (32 hex digits)."""

NodeId = NewType("NodeId", str)
"""Id of one process in a run, e.g. "rollout-mini2-4711-a1b2"; its consumer name in the streams."""

PolicyVersion = NewType("PolicyVersion", int)
"""0 for the initial weights, then +1 per committed batch."""

IssueNumber = NewType("IssueNumber", int)
"""Counts the issues of a run from 0."""


@dataclass(frozen=True, slots=True)
class WeightsLabel:
    """Version and hash together, e.g. ``WeightsLabel(PolicyVersion(3), "ab12...")``; a number alone can lie."""

    policy_version: PolicyVersion
    weights_sha256: str

    def to_proto(self) -> common_pb2.WeightsLabel:
        """The same as a message."""
        return common_pb2.WeightsLabel(policy_version=self.policy_version, weights_sha256=self.weights_sha256)

    @classmethod
    def from_proto(cls, message: common_pb2.WeightsLabel) -> WeightsLabel:
        """The same from a message."""
        return cls(PolicyVersion(message.policy_version), message.weights_sha256)

    def __str__(self) -> str:
        return f"v{self.policy_version} ({self.weights_sha256[:8]})"
