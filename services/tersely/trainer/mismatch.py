"""How far each rollout node is from the learner about tokens that the same weights sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tersely.types import GroupId, PolicyVersion
from tersely.v1 import group_pb2


def mismatch_by_node(
    groups: Sequence[group_pb2.ScoredGroup],
    compared: Mapping[GroupId, tuple[float, float]],
    current: PolicyVersion,
) -> dict[str, dict[str, Any]]:
    """Means over the tokens that the current version sampled whole groups with.

    Args:
        groups: The batch.
        compared: Per group the sum of |learner - behaviour logprob|, nats, and over how many tokens.
        current: Version that the learner compared with; what older ones sampled differs for another reason.

    Returns:
        By node id: `engine`, `nats` a token and `tokens`; nodes without fresh tokens are left out.
    """
    sums: dict[str, tuple[str, float, float]] = {}
    for scored in groups:
        group = scored.group
        spans = (span for completion in group.completions for span in completion.version_spans)
        nats, tokens = compared.get(GroupId(group.prompt.group_id), (0.0, 0.0))
        if not tokens or any(span.weights.policy_version != current for span in spans):
            continue
        _, known_nats, known_tokens = sums.get(group.rollout_node_id, ("", 0.0, 0.0))
        sums[group.rollout_node_id] = (group.rollout_engine, known_nats + nats, known_tokens + tokens)
    return {
        node: {"engine": engine, "nats": nats / tokens, "tokens": round(tokens)}
        for node, (engine, nats, tokens) in sorted(sums.items())
    }
