"""The length reward counts sampled ids and nothing else."""

import pytest

from tersely.errors import ConfigValue
from tersely.scorer.batch import completion_length, inputs_of
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.length import LengthReward
from tersely.v1 import common_pb2, group_pb2

STOP = 2


def completion(ids: list[int], *, stopped: bool, text: str = "x") -> group_pb2.Completion:
    reason = common_pb2.FINISH_REASON_STOP if stopped else common_pb2.FINISH_REASON_LENGTH
    return group_pb2.Completion(token_ids=ids, finish_reason=reason, text=text)


def of(tokens: int | None, target: int | None, text: str = "") -> RewardInput:
    return RewardInput(text=text, token_count=tokens, target_tokens=target)


def test_relative_is_the_distance_over_the_target_and_raw_is_the_distance() -> None:
    batch = [of(32, 32), of(40, 32), of(24, 32), of(0, 32)]
    assert LengthReward().score(batch) == [0.0, -0.25, -0.25, -1.0]
    assert LengthReward(scale="raw").score(batch) == [0.0, -8.0, -8.0, -32.0]


def test_a_perfect_length_is_not_minus_zero() -> None:
    assert str(LengthReward().score([of(32, 32)])[0]) == "0.0"


def test_stop_token_is_not_counted_but_every_id_of_a_truncated_completion_is() -> None:
    assert completion_length(completion([5, 6, 7, STOP], stopped=True)) == 3
    assert completion_length(completion([5, 6, 7, 8], stopped=False)) == 4
    assert completion_length(completion([STOP], stopped=True)) == 0


@pytest.mark.parametrize(
    "text",
    ["plain words here", "🙂👩‍👩‍👧‍👦🏳️‍🌈", "Краткое изложение статьи", "文章的简短摘要", "", "e\u0301" * 50],
    ids=str,
)
def test_characters_and_bytes_of_the_text_never_count(text: str) -> None:
    group = group_pb2.CompletionGroup(prompt=group_pb2.PromptGroup(target_tokens=4))
    group.completions.append(completion([900, 901, 902, 903, STOP], stopped=True, text=text))
    group.completions.append(completion([900, 901, 902, 903, 904, 905], stopped=False, text=text))
    assert LengthReward().score(inputs_of(group)) == [0.0, -0.5]


@pytest.mark.parametrize("scale", ["relative", "raw"])
def test_neighbouring_lengths_never_share_a_value(scale: str) -> None:
    target = 100_000_007
    lengths = [target + n for n in (0, 1, 2, 3)] + [1, 2]
    values = LengthReward(scale=scale).score([of(n, target) for n in lengths])
    assert len(set(values)) == len(lengths)


def test_unknown_count_or_target_is_absent_and_not_zero() -> None:
    assert LengthReward().score([of(None, 32), of(10, None), of(10, 0)]) == [None, None, None]


def test_a_wrong_scale_names_the_nearest() -> None:
    with pytest.raises(ConfigValue, match=r"rewards\.length\.scale is 'relativ'") as caught:
        LengthReward(scale="relativ")
    assert caught.value.way_out == "Did you mean relative?"


def test_a_quadratic_shape_is_milder_near_the_target_and_steeper_far_from_it() -> None:
    batch = [of(32, 32), of(40, 32), of(64, 32), of(96, 32)]
    assert LengthReward(shape="quadratic").score(batch) == [0.0, -0.0625, -1.0, -4.0]
    assert LengthReward(shape="quadratic", scale="raw").score(batch) == [0.0, -64.0, -1024.0, -4096.0]


def test_a_band_costs_nothing_within_its_tolerance_and_only_what_is_beyond_it() -> None:
    batch = [of(32, 32), of(37, 32), of(27, 32), of(38, 32), of(40, 32)]
    assert LengthReward(shape="band").score(batch) == [0.0, 0.0, 0.0, -1 / 32, -3 / 32]
    assert LengthReward(shape="band", tolerance=0).score(batch) == LengthReward().score(batch)
    assert LengthReward(shape="band", scale="raw", tolerance=7).score(batch) == [0.0, 0.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": "square"}, r"rewards\.length\.shape"),
        ({"tolerance": 3}, "the shape is linear"),
        ({"shape": "band", "tolerance": -1}, "whole number"),
        ({"shape": "band", "tolerance": True}, "whole number"),
    ],
)
def test_shapes_and_tolerances_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigValue, match=said):
        LengthReward(**options)  # type: ignore[arg-type]
