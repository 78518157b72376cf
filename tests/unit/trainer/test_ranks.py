"""How a batch is dealt to ranks and sent to them, and what the environment of torchrun must hold."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersely.config.learner import LearnerSection
from tersely.errors import ConfigValue, RankLost
from tersely.trainer.distributed.batches import batch_bytes, read_batch
from tersely.trainer.distributed.group import rank_errors
from tersely.trainer.distributed.launch import world_size
from tersely.trainer.distributed.ranks import SingleRank, deal
from tersely.trainer.distributed.team import _check, _own_threads
from tersely.trainer.groups import TrainingGroup
from tersely.types import GroupId

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@given(st.lists(st.integers(1, 10_000), max_size=30), st.integers(1, 8))
def test_every_item_goes_to_one_rank_and_no_rank_has_much_more(costs: list[int], size: int) -> None:
    shares = deal(costs, size)
    assert len(shares) == size
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[index] for index in share) for share in shares]
    # The last item that the fullest rank got went to what was then the emptiest.
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_items_are_balanced_by_cost_and_not_by_number() -> None:
    assert deal([10, 1, 9, 2], 2) == [[0, 1], [2, 3]]
    assert deal([3, 3, 3], 2) == [[0, 2], [1]]
    assert deal([5], 3) == [[0], [], []]


def test_one_rank_has_the_whole_batch() -> None:
    assert SingleRank().share([4, 1, 7]) == [0, 1, 2]
    assert SingleRank().sums([1.0, 2.0]) == [1.0, 2.0]


def test_a_batch_comes_back_from_its_bytes_as_it_was() -> None:
    batch = [
        TrainingGroup(
            group_id=GroupId("g0"),
            prompt_ids=(5, 6),
            completion_ids=((7,), (8, 9), ()),
            behaviour_logprobs=((-1.5,), (-0.25, -2.0), ()),
            rewards={"length": (0.1, None, 0.0), "rouge_l": (None, 1 / 3, 0.5)},
        ),
        TrainingGroup(GroupId("g1"), (4,), ((3,), (3,)), ((-0.5,), (-0.75,)), {"length": (0.0, 1.0)}),
    ]
    assert read_batch(batch_bytes(batch, 7)) == batch


def test_without_torchrun_there_is_one_process() -> None:
    assert world_size({}) == 1
    assert world_size({"WORLD_SIZE": "1"}) == 1
    assert world_size(TORCHRUN) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"RANK": "2"}, "RANK is 2 of 2"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"RANK": None, "LOCAL_RANK": None}, "RANK, LOCAL_RANK is not set"),
    ],
)
def test_an_environment_that_torchrun_would_not_make_is_refused(change: dict[str, str | None], said: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(ConfigValue, match=said) as refused:
        world_size(environment)
    assert "torchrun" in refused.value.way_out


def test_shards_and_adapters_are_refused_together() -> None:
    _check(LearnerSection.model_validate({"parallel": "ddp", "lora": {}}))
    with pytest.raises(ConfigValue, match="adapters need weights"):
        _check(LearnerSection.model_validate({"parallel": "fsdp", "lora": {}}))


def test_ranks_of_a_box_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * cores))
    assert _own_threads(LearnerSection()).threads == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert _own_threads(LearnerSection()).threads == cores
    assert _own_threads(LearnerSection(threads=3)).threads == 3


def test_what_torch_says_of_a_lost_rank_becomes_one_error() -> None:
    with pytest.raises(RankLost, match="Connection closed by peer") as lost, rank_errors():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:38051. Ask.\nmore")
    assert lost.value.message.endswith("any more: Connection closed by peer [127.0.0.1]:38051.")
    assert "--resume" in lost.value.way_out
    with pytest.raises(RankLost) as again, rank_errors():
        raise lost.value
    assert again.value is lost.value
