"""The trainer's end of a ring that is measured: everything but the learner, so no version is ever made."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tersely.config import Recipe, load_recipe
from tersely.data.prompts import PreparedPrompt
from tersely.errors import ServiceFailed
from tersely.models.load import load_policy
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.node.drain import DrainSignal
from tersely.node.heartbeat import read_nodes
from tersely.node.roles import role_name
from tersely.queue.connect import connect
from tersely.trainer.collector import Collector
from tersely.trainer.evaluation import EvaluationDesk
from tersely.trainer.history import History
from tersely.trainer.issuing import Issuer
from tersely.trainer.parts import Every
from tersely.trainer.run_directory import RunDirectory, course_sha256
from tersely.trainer.session import Inputs, open_stage
from tersely.trainer.wal import WriteAheadLog
from tersely.v1 import group_pb2, log_pb2

_POLL_SECONDS = 0.25
_LOOK_FOR_LOST_SECONDS = 3.0
_STARTING_SECONDS = 180.0
_FINISH_SECONDS = 60.0
_PROMPTS = 64
_WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "with", "as", "at", "from", "that", "it", "are", "be")


class BenchPrompts:
    """Made-up prompts of one size.

    Args:
        prompt_tokens: Ids of each prompt.
        vocabulary: Ids are below it.
    """

    def __init__(self, prompt_tokens: int, vocabulary: int) -> None:
        words = random.Random(0)
        self._made = [
            PreparedPrompt(
                prompt_id=f"bench-{index}",
                token_ids=tuple(words.randrange(vocabulary) for _ in range(prompt_tokens)),
                document=" ".join(words.choices(_WORDS, k=prompt_tokens)),
                reference=" ".join(words.choices(_WORDS, k=40)),
                target_tokens=0,
                document_tokens_cut=0,
            )
            for index in range(_PROMPTS)
        ]

    def __len__(self) -> int:
        return _PROMPTS

    def prompt_id(self, index: int) -> str:
        """Id of a prompt."""
        return self._made[index].prompt_id

    def prompt(self, index: int, target_tokens: int) -> PreparedPrompt:
        """A prompt that asks for a length, in its figures only."""
        made = self._made[index]
        return PreparedPrompt(
            made.prompt_id, made.token_ids, made.document, made.reference, target_tokens, made.document_tokens_cut
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that is in the log.

    Attributes:
        at: When it was let go of, monotonic seconds.
        groups: Its groups.
    """

    at: float
    groups: tuple[group_pb2.ScoredGroup, ...]


class RingTrainer:
    """Issues groups, takes them back, logs batches and lets go of them, as a trainer does; trains nothing.

    Log, ledger, event log, status file, heartbeat and the search for lost groups are the trainer's own; the recorder
    (samples and figures) is left out with the learner.

    Args:
        folder: Run directory, new.
        redis_url: Queue server.
        overrides: Items of `--set` for the recipe.
        prompt_tokens: Ids per prompt.
        stack: Closes what is opened.
    """

    def __init__(
        self, folder: Path, redis_url: str, overrides: Sequence[str], prompt_tokens: int, stack: ExitStack
    ) -> None:
        self.recipe = load_recipe(None, overrides, environ={}).recipe
        model_folder = locate_model(self.recipe.model.name)
        tokenizer = PolicyTokenizer.from_folder(model_folder)
        prompts = BenchPrompts(prompt_tokens, tokenizer.vocab_size)
        self.client = stack.enter_context(connect(redis_url))
        queue = self.recipe.queue.model_copy(update={"url": redis_url})
        self.recipe = self.recipe.model_copy(update={"queue": queue})
        self.inputs = Inputs(
            self.recipe, redis_url, self.client, model_folder, tokenizer, prompts, (), process_started=time.time()
        )
        self._directory = stack.enter_context(RunDirectory(folder, resume=False))
        history = History()
        self._stage = open_stage(self.inputs, self._directory, DrainSignal(), stack, history)
        self.ring, self.keys, self.ledger = self._stage.ring, self._stage.ring.keys, history.ledger
        weights = {name: value.detach() for name, value in load_policy(model_folder).named_parameters()}
        self._label = self._stage.store.publish(0, weights)
        self._wal = stack.enter_context(WriteAheadLog(self._directory.log_file, self._directory.check_incarnation))
        started = log_pb2.TrainerStarted(
            run_id=self._stage.run_id,
            incarnation=self._directory.incarnation,
            initial_weights=self._label.to_proto(),
            recipe_sha256=course_sha256(self.recipe),
        )
        self._wal.append(log_pb2.LogRecord(trainer_started=started), sync=True)
        self._step = 0
        self.collector = self.collector_for(self.recipe)

    @property
    def address(self) -> str:
        """Where nodes join."""
        return str(self._directory.read_json("run.json")["trainer_address"])

    def collector_for(self, recipe: Recipe) -> Collector:
        """A collector of the run, with other credits perhaps; to be used when nothing is open."""
        collector = Collector(
            recipe,
            Issuer(
                self._stage.run_id,
                self._directory.incarnation,
                recipe,
                self.inputs.train_prompts,
                self.inputs.tokenizer.stop_token_ids,
            ),
            self.ledger,
            self.ring,
            self._wal,
            self._stage.events,
            desk=EvaluationDesk(self.ring),
            on_dropped=lambda arrival, outcome: None,
        )
        collector.begin_step(self._label, 1)
        self._stage.books.accepted = collector.accepted
        return collector

    def wait_for(self, role: str, count: int) -> None:
        """Waits until so many nodes of a role are ready for work.

        Raises:
            ServiceFailed: They were not in three minutes.
        """
        deadline = time.monotonic() + _STARTING_SECONDS
        while time.monotonic() < deadline:
            nodes = [node for node in read_nodes(self.client, self.keys) if role_name(node.role) == role]
            if sum(node.state != "starting" for node in nodes) >= count:
                return
            time.sleep(0.2)
        raise ServiceFailed(
            f"{count} nodes of the role {role} were not ready within {_STARTING_SECONDS:.0f} s.",
            "Look at their logs in the folder given with --keep.",
        )

    def run(self, seconds: float, collector: Collector | None = None, most: int | None = None) -> list[Batch]:
        """Keeps the ring going.

        Args:
            seconds: For so long.
            collector: Instead of the run's own.
            most: End after so many batches.

        Returns:
            The batches that were logged.
        """
        return self._go(collector or self.collector, time.monotonic() + seconds, 1 << 30, most)

    def finish(self, collector: Collector | None = None) -> None:
        """Issues nothing more, takes what is on its way, and drops what makes no whole batch."""
        collector = collector or self.collector
        deadline = time.monotonic() + _FINISH_SECONDS
        while collector.outstanding and time.monotonic() < deadline:
            self._go(collector, time.monotonic() + 0.1, 0, None)
        collector.close_out()

    def _go(self, collector: Collector, until: float, remaining_steps: int, most: int | None) -> list[Batch]:
        logged: list[Batch] = []
        look = Every(_LOOK_FOR_LOST_SECONDS)
        while time.monotonic() < until and (most is None or len(logged) < most):
            if look.due():
                collector.take_again()
                collector.resend_lost()
            collector.top_up(remaining_steps)
            collector.poll(min(_POLL_SECONDS, max(0.01, until - time.monotonic())))
            while batch := collector.batch():
                self._step += 1
                groups = [arrival.group for arrival in batch]
                formed = log_pb2.BatchFormed(step=self._step, groups=groups)
                self._wal.append(log_pb2.LogRecord(batch_formed=formed), sync=True)
                collector.remove(batch)
                self.ring.acknowledge([arrival.lease for arrival in batch])
                logged.append(Batch(time.monotonic(), tuple(groups)))
        return logged

    def counts(self) -> dict[str, int]:
        """The run's books, and second copies."""
        return {**self._stage.books.read(), "duplicates": self.ledger.duplicates}
