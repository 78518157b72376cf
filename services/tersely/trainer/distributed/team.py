"""One learner on several ranks: rank 0 is the trainer, the others do what its learner does, in lockstep.

Only rank 0 has a run directory, a log, Redis and a server. The others get the recipe and each batch from it, so they
can neither differ in settings nor in data.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch

from tersely.config import Recipe
from tersely.config.learner import LearnerSection
from tersely.errors import ConfigValue, RankLost
from tersely.models.device import available_cores
from tersely.models.locate import locate_model
from tersely.trainer.distributed.batches import batch_bytes, read_batch
from tersely.trainer.distributed.channel import Channel, Command, Message
from tersely.trainer.distributed.group import TorchRanks, rank_errors
from tersely.trainer.distributed.launch import ranks_on_this_box
from tersely.trainer.groups import TrainingGroup
from tersely.trainer.health import StepHealth
from tersely.trainer.learner import Learner
from tersely.weights.probe import Probe

log = structlog.get_logger(__name__)


class Team:
    """What rank 0 has of the others.

    Args:
        ranks: The group, of which this process is rank 0.
    """

    def __init__(self, ranks: TorchRanks) -> None:
        self.ranks = ranks
        self._channel = Channel(ranks)
        self._apart = False

    def learner(self, folder: Path, recipe: Recipe, stop_token_ids: Collection[int]) -> LeadingLearner:
        """The learner of all ranks.

        Raises:
            ConfigValue: if these settings don't work on several ranks.
            ModelInvalid, RankLost.
        """
        _check(recipe.learner)
        begin = {"recipe": recipe.model_dump(mode="json"), "stop_token_ids": sorted(stop_token_ids)}
        with self.together(Message(Command.BEGIN, payload=json.dumps(begin).encode())):
            return LeadingLearner(folder, recipe, stop_token_ids, self)

    @contextmanager
    def together(self, message: Message) -> Iterator[None]:
        """Tell the others, then do the same inside."""
        self._apart = True
        self._channel.send(message)
        yield
        self._apart = False

    def load_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Give a state to the others."""
        self._channel.send_state(tensors, meta)

    def stop(self) -> None:
        """Let the others end; to be called whenever rank 0 ends."""
        if self._apart:
            # They are in the middle of a step that will not come to its end, and see that this process is gone.
            log.warning("ranks_left", reason="this rank failed within a step")
            return
        try:
            self._channel.send(Message(Command.STOP))
            self._channel.meet()
            self.ranks.leave()
        except RankLost as error:
            log.warning("ranks_lost", reason=error.message)


class LeadingLearner(Learner):
    """The learner of rank 0. What takes all ranks is announced to them first.

    Args:
        folder: The initial policy.
        recipe: The run's.
        stop_token_ids: What ends a completion.
        team: The other ranks, which have been told to begin.
    """

    def __init__(self, folder: Path, recipe: Recipe, stop_token_ids: Collection[int], team: Team) -> None:
        self._team = team
        super().__init__(folder, _own_threads(recipe.learner), **_settings(recipe, stop_token_ids, team.ranks))

    def train(self, batch: Sequence[TrainingGroup], step: int) -> StepHealth:
        """One step of all ranks."""
        with self._team.together(Message(Command.TRAIN, step, batch_bytes(batch, step))):
            return super().train(batch, step)

    def published(self) -> dict[str, torch.Tensor]:
        """The whole policy, gathered if it is sharded."""
        if not self._team.ranks.sharded:
            return super().published()
        with self._team.together(Message(Command.PUBLISHED)), rank_errors():
            return super().published()

    def probe(self) -> Probe:
        """What the whole policy says of a few fixed tokens."""
        if not self._team.ranks.sharded:
            return super().probe()
        with self._team.together(Message(Command.PROBE)), rank_errors():
            return super().probe()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The whole state, as one process would have it."""
        if not self._team.ranks.sharded:
            return super().state()
        with self._team.together(Message(Command.STATE)), rank_errors():
            return super().state()

    def load_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Give all ranks a state."""
        self._team.load_state(tensors, meta)
        super().load_state(tensors, meta)


def follow(ranks: TorchRanks) -> int:
    """The life of every rank but 0; returns the exit code when rank 0 has ended in good order.

    Signals that ask for an end are left to rank 0, which needs the others to finish its step.

    Raises:
        RankLost: if rank 0 or another rank is gone.
        TerselyError: what the learner raises; the other ranks' learners raise the same.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(ranks)
    learner: Learner | None = None
    while (message := channel.receive()).command is not Command.STOP:
        if message.command is Command.BEGIN:
            learner = _begin(ranks, message.payload)
            continue
        assert learner is not None, "the first command is BEGIN"
        if message.command is Command.TRAIN:
            learner.train(read_batch(message.payload), message.step)
        elif message.command in (Command.PUBLISHED, Command.STATE, Command.PROBE):
            # Only rank 0 keeps what comes together here.
            parts = {
                Command.PUBLISHED: learner.published,
                Command.STATE: learner.state,
                Command.PROBE: learner.probe,
            }
            with rank_errors():
                parts[message.command]()
        else:
            learner.load_state(*channel.receive_state(message.payload))
    channel.meet()
    ranks.leave()
    log.info("rank_ended", rank=ranks.rank)
    return 0


def _begin(ranks: TorchRanks, payload: bytes) -> Learner:
    begin = json.loads(payload)
    recipe = Recipe.model_validate(begin["recipe"])
    folder = locate_model(recipe.model.name, recipe.model.revision)
    return Learner(folder, _own_threads(recipe.learner), **_settings(recipe, begin["stop_token_ids"], ranks))


def _settings(recipe: Recipe, stop_token_ids: Collection[int], ranks: TorchRanks) -> dict[str, Any]:
    ranks.choose(recipe.learner.parallel)
    return {
        "temperature": recipe.sampling.temperature,
        "reward_weights": recipe.reward_weights,
        "total_steps": recipe.run.steps,
        "max_completion_tokens": recipe.max_completion_tokens,
        "stop_token_ids": stop_token_ids,
        "ranks": ranks,
    }


def _own_threads(section: LearnerSection) -> LearnerSection:
    """Ranks of one box share its cores, unless the recipe says how many threads each has."""
    threads = section.threads or max(1, available_cores() // ranks_on_this_box())
    return section.model_copy(update={"threads": threads})


def _check(section: LearnerSection) -> None:
    if section.parallel == "fsdp" and section.lora is not None:
        raise ConfigValue(
            "learner.parallel is fsdp, and learner.lora is set: adapters need weights that no rank then has whole.",
            'Set learner.parallel = "ddp"; what adapters add to a copy of the model is small.',
        )
