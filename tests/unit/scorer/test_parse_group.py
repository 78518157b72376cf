"""What the scorer refuses to score."""

import pytest

from tersely.scorer.ring import MalformedGroup, parse_group
from tersely.v1 import common_pb2, group_pb2

STOP = 2


def good() -> group_pb2.CompletionGroup:
    prompt = group_pb2.PromptGroup(group_id="g", group_size=2, stop_token_ids=[STOP], target_tokens=3)
    group = group_pb2.CompletionGroup(prompt=prompt)
    group.completions.add(sample_index=0, token_ids=[7, 8, STOP], finish_reason=common_pb2.FINISH_REASON_STOP)
    group.completions.add(sample_index=1, token_ids=[7, 8, 9], finish_reason=common_pb2.FINISH_REASON_LENGTH)
    return group


def test_a_good_group_is_read_as_it_is() -> None:
    assert parse_group(good().SerializeToString()) == good()


def without_completions(group: group_pb2.CompletionGroup) -> None:
    del group.completions[:]


def one_missing(group: group_pb2.CompletionGroup) -> None:
    del group.completions[1]


def no_tokens(group: group_pb2.CompletionGroup) -> None:
    del group.completions[1].token_ids[:]


def no_reason(group: group_pb2.CompletionGroup) -> None:
    group.completions[1].finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED


def stopped_without_stop_token(group: group_pb2.CompletionGroup) -> None:
    del group.completions[0].token_ids[-1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_completions, "0 completions for a group size of 2"),
        (one_missing, "1 completions for a group size of 2"),
        (no_tokens, "completion 1 has no tokens"),
        (no_reason, "completion 1 does not say why it ended"),
        (stopped_without_stop_token, "completion 0 ended by a stop token, but its last id 8 is none"),
    ],
)
def test_a_group_whose_lengths_would_be_wrong_is_refused(spoil, said: str) -> None:  # type: ignore[no-untyped-def]
    group = good()
    spoil(group)
    with pytest.raises(MalformedGroup, match=said):
        parse_group(group.SerializeToString())


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(MalformedGroup, match="4 bytes"):
        parse_group(b"\xff\xff\xff\xff")
