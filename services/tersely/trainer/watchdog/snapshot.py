"""All that can be known of a run at one moment, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tersely.trainer.watchdog.clock import Jump
from tersely.trainer.watchdog.pace import Phase

SILENT_SECONDS = 6.0
"""Heartbeats come every two seconds; a node that missed three does not live, though its key may."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that was heard of lately, or is gone.

    Attributes:
        node_id, role, host, state, detail, policy_version, leases, last_error: As in its last heartbeat.
        silent_seconds: Since its last heartbeat.
        still_seconds: Since it last finished a group or took other weights, as far as this trainer has seen it.
        version_seconds: Since it last took other weights.
        error_seconds: Since its last error came up; None: it has none.
    """

    node_id: str
    role: str
    host: str = ""
    state: str = ""
    detail: str = ""
    policy_version: int = -1
    leases: int = 0
    last_error: str = ""
    silent_seconds: float = 0.0
    still_seconds: float = 0.0
    version_seconds: float = 0.0
    error_seconds: float | None = None

    @property
    def lives(self) -> bool:
        """Whether it was heard of lately enough."""
        return self.silent_seconds <= SILENT_SECONDS

    @property
    def called(self) -> str:
        """For people."""
        return f"{self.role} {self.node_id}" + (f" on {self.host}" if self.host else "")


@dataclass(frozen=True, slots=True)
class Stream:
    """One work stream.

    Attributes:
        waiting: Entries that nobody holds.
        leased: Entries that somebody holds.
        holders: Who holds how many, as far as that was asked.
    """

    waiting: int = 0
    leased: int = 0
    holders: Mapping[str, int] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """All of them."""
        return self.waiting + self.leased


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that fails, and since when.

    Attributes:
        kind: Of the error, e.g. "redis_out_of_memory".
        message: What it says.
        seconds: For how long without a success between.
    """

    kind: str
    message: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The run at one moment.

    Attributes:
        phase: What the trainer is at; None: nothing that can be late.
        policy_version: Newest version.
        groups_per_step: As in the recipe.
        max_staleness: As in the recipe.
        lease_seconds: As in the recipe.
        nodes: Heard of in the last ten seconds.
        gone: Heard of before that; `silent_seconds` says when last.
        streams: By name: prompts, eval_prompts, completions, scored.
        fell_out: Groups that ended without being trained on since the phase began, by outcome.
        absent: Groups among them that lacked a reward.
        absent_reason: Why the last reward was absent.
        evaluating: Whether an evaluation is under way.
        missing: Groups issued that are in no stream and have no outcome.
        reading: Redis does not let the trainer read.
        writing: Redis does not let the trainer write.
        disk_free_bytes: Of the run directory; None: not asked.
        cpu_share: CPU seconds of the trainer per second since the phase began; None: not known.
        judged: Whether a judge is among the rewards.
        jumps: Clocks that moved by themselves.
        woke_at: When this machine last woke; None: never slept.
        redis_back_at: When Redis last answered again after it had not; None: it always has.
    """

    phase: Phase | None
    policy_version: int = 0
    groups_per_step: int = 4
    max_staleness: int = 0
    lease_seconds: float = 20.0
    nodes: tuple[Node, ...] = ()
    gone: tuple[Node, ...] = ()
    streams: Mapping[str, Stream] = field(default_factory=dict)
    fell_out: Mapping[str, int] = field(default_factory=dict)
    absent: int = 0
    absent_reason: str = ""
    evaluating: bool = False
    missing: int = 0
    reading: Trouble | None = None
    writing: Trouble | None = None
    disk_free_bytes: int | None = None
    cpu_share: float | None = None
    jumps: tuple[Jump, ...] = ()
    woke_at: float | None = None
    redis_back_at: float | None = None
    judged: bool = False

    def stream(self, name: str) -> Stream:
        """A stream; an empty one where it is not known."""
        return self.streams.get(name, Stream())

    def living(self, role: str) -> tuple[Node, ...]:
        """Nodes of a role that live."""
        return tuple(node for node in self.nodes if node.role == role and node.lives)

    def lost(self, role: str) -> tuple[Node, ...]:
        """Nodes of a role that do not live any more, those last heard of first."""
        silent = [node for node in (*self.nodes, *self.gone) if node.role == role and not node.lives]
        return tuple(sorted(silent, key=lambda node: node.silent_seconds))
