"""The mismatch of each rollout node."""

from __future__ import annotations

import pytest

from tersely.trainer.mismatch import mismatch_by_node
from tersely.types import GroupId, PolicyVersion
from tersely.v1 import common_pb2, group_pb2


def sampled(name: str, node: str, engine: str, *versions: int) -> group_pb2.ScoredGroup:
    """A group of two completions; the first has one span per version, the second is of the last one alone."""
    made = group_pb2.ScoredGroup()
    made.group.prompt.group_id = name
    made.group.rollout_node_id, made.group.rollout_engine = node, engine
    for spans in (versions, versions[-1:]):
        completion = made.group.completions.add()
        for place, version in enumerate(spans):
            label = common_pb2.WeightsLabel(policy_version=version)
            completion.version_spans.add(weights=label, first_token=place, token_count=1)
    return made


def test_fresh_tokens_are_added_up_by_node() -> None:
    groups = [sampled("a", "n1", "torch", 7), sampled("b", "n2", "mlx", 7), sampled("c", "n1", "torch", 7)]
    compared = {GroupId("a"): (1.0, 10.0), GroupId("b"): (4.0, 8.0), GroupId("c"): (2.0, 20.0)}
    assert mismatch_by_node(groups, compared, PolicyVersion(7)) == {
        "n1": {"engine": "torch", "nats": pytest.approx(0.1), "tokens": 30},
        "n2": {"engine": "mlx", "nats": 0.5, "tokens": 8},
    }


def test_what_older_versions_sampled_is_left_out_whole_or_in_part() -> None:
    groups = [sampled("a", "n1", "torch", 6), sampled("b", "n1", "torch", 6, 7), sampled("c", "n2", "torch", 7)]
    compared = {GroupId(name): (1.0, 10.0) for name in "abc"}
    assert mismatch_by_node(groups, compared, PolicyVersion(7)).keys() == {"n2"}


def test_a_group_that_nothing_was_trained_on_tells_nothing() -> None:
    groups = [sampled("a", "n1", "torch", 7), sampled("b", "n2", "torch", 7)]
    assert mismatch_by_node(groups, {GroupId("a"): (0.0, 0.0)}, PolicyVersion(7)) == {}
