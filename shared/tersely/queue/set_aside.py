"""The quarantine of one run as people see it: entries in the queue server, events of the run, and decisions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from tersely.config.schema import QueueSection
from tersely.errors import QuarantineRefused, QueueError, RunDirMissing
from tersely.queue.connect import address_of, open_queue, redis_errors
from tersely.queue.decisions import ASKED, DONE, REPLAY, Decision, Decisions
from tersely.queue.keys import RunKeys
from tersely.supervise.run_dir import RunDir, read_json
from tersely.telemetry.events import read_events
from tersely.types import GroupId, RunId
from tersely.v1 import group_pb2

SERVER, EVENTS = "queue server", "event log"
_EVALUATION = "eval-"
_MOST_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class AsideGroup:
    """A group in the quarantine.

    Attributes:
        group_id: Its id.
        issue_number: Its number.
        stage: Stream it failed in; empty: not known.
        error_kind: Kind of its last error.
        error: Its last error.
        time: When it was set aside, Unix seconds.
        strikes: Failures reported.
        expired_leases: Leases that ran out.
        payload: The message that failed; None: the server does not have it.
        decision: What was decided on it, if anything.
    """

    group_id: GroupId
    issue_number: int
    stage: str
    error_kind: str
    error: str
    time: float
    strikes: int = 0
    expired_leases: int = 0
    payload: bytes | None = None
    decision: Decision | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be decided or done."""
        return self.decision is not None and self.decision.state == DONE

    @property
    def decided(self) -> str:
        """For people."""
        if self.decision is None:
            return "undecided"
        text = f"{self.decision.action} {self.decision.state}".strip()
        if self.decision.issued_as:
            return f"{text} as {self.decision.issued_as}"
        return f"{text}: {self.decision.reason}" if self.decision.reason else text

    def to_json(self) -> dict[str, Any]:
        """All but the entry."""
        decision = None if self.decision is None else asdict(self.decision)
        facts = {name: value for name, value in asdict(self).items() if name not in ("payload", "decision")}
        return {**facts, "has_entry": self.payload is not None, "decision": decision}

    def entry(self) -> dict[str, Any]:
        """What was to be worked on, as far as it can be read."""
        prompt, completions = None, []
        try:
            if self.payload is not None and self.stage in ("prompts", "eval_prompts"):
                prompt = group_pb2.PromptGroup.FromString(self.payload)
            elif self.payload is not None and self.stage == "completions":
                group = group_pb2.CompletionGroup.FromString(self.payload)
                prompt, completions = group.prompt, [c.text for c in group.completions]
            elif self.payload is not None and self.stage == "scored":
                scored = group_pb2.ScoredGroup.FromString(self.payload)
                prompt, completions = scored.group.prompt, [c.text for c in scored.group.completions]
        except DecodeError:
            return {"entry": f"{len(self.payload or b'')} bytes that can't be read"}
        if prompt is None:
            return {}
        return {
            "prompt_id": prompt.prompt_id,
            "prompt_tokens": len(prompt.prompt_token_ids),
            "target_tokens": prompt.target_tokens,
            "document": prompt.document[:_MOST_CHARACTERS],
            "reference": prompt.reference[:_MOST_CHARACTERS],
            "completions": [text[:_MOST_CHARACTERS] for text in completions],
        }


class SetAside:
    """The quarantine of one run; a context manager.

    Args:
        run_id: The run.
        client: Of its queue server; None: the server is away, and the run's events must do.
        run_dir: Its directory, if it is on this machine.
        why_away: What the server answered.
    """

    def __init__(
        self, run_id: RunId, client: redis.Redis | None, run_dir: RunDir | None, why_away: QueueError | None = None
    ) -> None:
        self.run_id = run_id
        self._client = client
        self._run_dir = run_dir
        self._why_away = why_away
        self._keys = RunKeys(run_id)
        self._decisions = None if client is None else Decisions(client, self._keys)

    @classmethod
    def of_run(cls, path: Path, password_env: str | None = None) -> Self:
        """That of a run directory.

        Raises:
            RunDirMissing.
        """
        run_dir = RunDir(path.resolve())
        run_dir.check_exists()
        run = read_json(run_dir.run)
        if run is None or not run.get("run_id"):
            raise RunDirMissing(f"{path} has no run.json: no trainer was ever ready there.", "Check RUN_DIR.")
        queue = _queue_section(run_dir, password_env)
        try:
            client = open_queue(queue, str(run.get("redis_url", "")), os.environ)
        except QueueError as error:
            return cls(RunId(run["run_id"]), None, run_dir, error)
        return cls(RunId(run["run_id"]), client, run_dir)

    @classmethod
    def of_server(cls, url: str, run_id: str | None = None, password_env: str | None = None) -> Self:
        """That of a run on a server.

        Raises:
            QuarantineRefused: The server has no such run, or more than one and none was named.
            ConfigValue, QueueError: The server can't be reached.
        """
        queue = QueueSection() if password_env is None else QueueSection(password_env=password_env)
        client = open_queue(queue, url, os.environ)
        runs = _runs_on(client)
        if run_id is None and len(runs) == 1:
            run_id = runs[0]
        if run_id is None or run_id not in runs:
            known = f"It has {', '.join(runs)}." if runs else "It has none."
            client.close()
            raise QuarantineRefused(
                f"Which run of the server is meant? {known}", "Name one of them with --run, or a run directory."
            )
        return cls(RunId(run_id), client, None)

    @property
    def source(self) -> str:
        """Where the groups come from."""
        return SERVER if self._client is not None else EVENTS

    def groups(self) -> list[AsideGroup]:
        """All groups ever set aside that anybody still knows of, oldest first."""
        found = self._from_events()
        decisions = self._decisions.read() if self._decisions is not None else {}
        for group in self._from_server():
            earlier = found.get(group.group_id)
            found[group.group_id] = group if earlier is None else _with(group, earlier.decision)
        return [
            _with(group, decisions.get(group_id, group.decision))
            for group_id, group in sorted(found.items(), key=lambda item: item[1].time)
        ]

    def find(self, start: str) -> AsideGroup:
        """The one whose id begins so.

        Raises:
            QuarantineRefused: None does, or several.
        """
        groups = self.groups()
        found = [group for group in groups if group.group_id == start]
        found = found or [group for group in groups if start and group.group_id.startswith(start)]
        if len(found) != 1:
            what = f"{len(found)} groups begin" if found else "No group begins"
            raise QuarantineRefused(
                f"{what} with {start!r} in the quarantine of run {self.run_id}.", "See `tersely quarantine list`."
            )
        return found[0]

    def ask(self, start: str, action: str, reason: str = "") -> dict[str, Any]:
        """Asks the trainer to try a group again, or to drop it.

        Args:
            start: Its id, or the beginning.
            action: `replay` or `drop`.
            reason: Why, for people.

        Raises:
            QuarantineRefused: It is not there, was decided on, or can't be tried again.
            QueueError: The server is away.
        """
        group = self.find(start)
        if self._run_dir is not None and (read_json(self._run_dir.status) or {}).get("state") == "finished":
            raise QuarantineRefused(f"Run {self.run_id} is finished: nothing is issued any more.", "Nothing to do.")
        if self._why_away is not None:
            raise self._why_away
        if action == REPLAY and (group.group_id.startswith(_EVALUATION) or not group.group_id):
            raise QuarantineRefused(
                f"{group.group_id or 'A damaged entry'} is no training group: there is nothing to issue again.",
                "Drop it; an evaluation counts it among its failed prompts.",
            )
        if group.decision is not None and group.decision.state != ASKED:
            self._refuse_decided(group.group_id, group.decision)
        assert self._decisions is not None
        earlier = self._decisions.ask(Decision(group.group_id, action, reason=reason))
        if earlier is not None:
            self._refuse_decided(group.group_id, earlier)
        return {"run_id": self.run_id, "group_id": group.group_id, "action": action, "state": ASKED, "reason": reason}

    def _refuse_decided(self, group_id: GroupId, decision: Decision) -> None:
        raise QuarantineRefused(
            f"Group {group_id} was decided on before: {decision.action} {decision.state}.",
            "A group is decided on once; see `tersely quarantine list --all`.",
        )

    def _from_server(self) -> list[AsideGroup]:
        if self._client is None:
            return []
        with redis_errors(address_of(self._client)):
            entries: Any = self._client.xrange(self._keys.quarantine)
        found = (_read_entry(entry_id, fields) for entry_id, fields in entries)
        return [group for group in found if group is not None]

    def _from_events(self) -> dict[GroupId, AsideGroup]:
        """What the event log knows, which outlives the server."""
        found: dict[GroupId, AsideGroup] = {}
        if self._run_dir is None:
            return found
        for event in read_events(self._run_dir.events):
            group_id = GroupId(str(event.get("group_id", "")))
            if event["kind"] == "group_quarantined":
                number, reason = int(_number(event.get("issue_number"))), str(event.get("reason", ""))
                found[group_id] = AsideGroup(group_id, number, "", "", reason, _number(event["time"]))
            elif event["kind"] == "quarantine_dropped" and group_id in found:
                done = Decision(group_id, "drop", DONE, str(event.get("reason", "")), _number(event["time"]))
                found[group_id] = _with(found[group_id], done)
            elif event["kind"] == "group_issued" and (original := GroupId(str(event.get("replay_of", "")))) in found:
                done = Decision(original, REPLAY, DONE, time=_number(event["time"]), issued_as=group_id)
                found[original] = _with(found[original], done)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()


def _queue_section(run_dir: RunDir, password_env: str | None) -> QueueSection:
    """The run's queue settings; where they can't be read, the defaults."""
    section = (read_json(run_dir.recipe) or {}).get("queue")
    try:
        queue = QueueSection.model_validate(section) if isinstance(section, Mapping) else QueueSection()
    except ValidationError:
        queue = QueueSection()
    return queue if password_env is None else queue.model_copy(update={"password_env": password_env})


def _runs_on(client: redis.Redis) -> list[str]:
    with redis_errors(address_of(client)):
        keys = list(client.scan_iter(match="t:*:quarantine", count=1000)) + list(
            client.scan_iter(match="t:*:prompts", count=1000)
        )
    found = (re.fullmatch(rb"t:\{(.+)\}:(?:quarantine|prompts)", key) for key in keys)
    return sorted({match[1].decode(errors="replace") for match in found if match})


def _read_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> AsideGroup | None:
    seconds = int(entry_id.partition(b"-")[0]) / 1000
    try:
        group = group_pb2.QuarantinedGroup.FromString(fields[b"p"])
    except (KeyError, DecodeError):
        return None
    return AsideGroup(
        GroupId(group.group_id),
        group.issue_number,
        group.stage,
        group.error_kind,
        group.error_message,
        seconds,
        group.strikes,
        group.expired_leases,
        group.entry,
    )


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def _with(group: AsideGroup, decision: Decision | None) -> AsideGroup:
    facts = {name: getattr(group, name) for name in AsideGroup.__slots__}
    return AsideGroup(**{**facts, "decision": decision})
