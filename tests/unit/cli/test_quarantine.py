"""`tersely quarantine` and `tersely invariants` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from tersely.cli.main import app
from tersely.errors import InvariantBroken, QuarantineRefused
from tersely.queue.keys import RunKeys
from tersely.testing.modules import load_module
from tersely.types import RunId
from tersely.v1 import group_pb2

made = load_module(Path(__file__).parents[1] / "invariants" / "made_run.py")
KEYS = RunKeys(RunId("r-made"))


def run_cli(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)
    return result.stdout


def usage(*words: str | Path) -> int:
    return CliRunner().invoke(app, [str(word) for word in words]).exit_code


@pytest.fixture
def run(tmp_path: Path, valkey_client: redis.Redis, valkey_url: str) -> Path:
    """A run that goes on, with one group in the quarantine of its server."""
    path = made.make_run(tmp_path / "run")
    made.change_events(path, lambda events: [events.pop()])
    (path / "run.json").write_text(json.dumps({"run_id": "r-made", "redis_url": valkey_url}))
    prompt = group_pb2.PromptGroup(group_id="g1", prompt_id="p1", document="the whole text")
    completions = group_pb2.CompletionGroup(prompt=prompt)
    completions.completions.add(text="a summary\x1b[2J")
    entry = group_pb2.QuarantinedGroup(
        group_id="g1",
        issue_number=1,
        stage="completions",
        entry=completions.SerializeToString(),
        error_kind="reward_failed",
        error_message="it divides by zero",
        strikes=3,
    )
    valkey_client.xadd(KEYS.quarantine, {"g": "g1", "p": entry.SerializeToString()})
    return path


def asked(client: redis.Redis) -> dict[str, str]:
    decision = client.hget(KEYS.quarantine_decisions, "g1")
    return json.loads(decision) if decision else {}


def test_a_group_is_listed_and_shown_without_control_characters(run: Path) -> None:
    made.change_events(run, lambda events: [events[11].pop("replay_of")])
    listed = run_cli("quarantine", "list", run)
    assert "g1  issue 1  completions  undecided" in listed
    assert "reward_failed: it divides by zero" in listed
    shown = run_cli("quarantine", "show", run, "g1")
    assert "document: the whole text" in shown
    assert "a summary" in shown
    assert "\x1b" not in shown
    assert json.loads(run_cli("quarantine", "show", run, "g1", "--json"))["prompt_id"] == "p1"


def test_what_the_events_say_was_done_is_not_asked_for_again(run: Path, valkey_client: redis.Redis) -> None:
    """The server never heard of the decision, or has forgotten it; the run has not."""
    assert json.loads(run_cli("quarantine", "list", run, "--json"))["groups"] == []
    (group,) = json.loads(run_cli("quarantine", "list", run, "--all", "--json"))["groups"]
    assert group["decision"]["issued_as"] == "g7"
    with pytest.raises(QuarantineRefused):
        run_cli("quarantine", "replay", run, "g1")


def test_replay_and_drop_ask_the_trainer_by_run_or_by_server(
    run: Path, valkey_client: redis.Redis, valkey_url: str
) -> None:
    made.change_events(run, lambda events: [events[11].pop("replay_of")])
    assert json.loads(run_cli("quarantine", "replay", run, "g1", "--json"))["state"] == "asked"
    assert asked(valkey_client)["action"] == "replay"
    valkey_client.delete(KEYS.quarantine_decisions)
    run_cli("quarantine", "drop", "--redis", valkey_url, "g1", "--reason", "no text")
    assert (asked(valkey_client)["action"], asked(valkey_client)["reason"]) == ("drop", "no text")


def test_a_finished_run_is_asked_for_nothing(run: Path, valkey_client: redis.Redis) -> None:
    (run / "status.json").write_text('{"state": "finished"}')
    with pytest.raises(QuarantineRefused, match="finished"):
        run_cli("quarantine", "replay", run, "g1")
    assert asked(valkey_client) == {}


def test_a_server_with_two_runs_needs_to_be_told_which(run: Path, valkey_client: redis.Redis, valkey_url: str) -> None:
    valkey_client.xadd(RunKeys(RunId("r-other")).quarantine, {"g": "x"})
    with pytest.raises(QuarantineRefused, match="r-made, r-other"):
        run_cli("quarantine", "list", "--redis", valkey_url)
    assert "g1" in run_cli("quarantine", "list", "--redis", valkey_url, "--run", "r-made")


def test_what_is_typed_wrong_is_a_usage_error(run: Path) -> None:
    assert usage("quarantine", "list") == 2
    assert usage("quarantine", "show", run) == 2
    assert usage("quarantine", "drop", run, "g1") == 2
    assert usage("quarantine", "drop", run, "g1", "--reason", " ") == 2
    assert usage("quarantine", "list", run, "--run", "r-made") == 2


def test_invariants_end_with_an_error_and_name_the_line(run: Path) -> None:
    assert "conservation: ok" in run_cli("invariants", run)
    assert json.loads(run_cli("invariants", run, "--json"))["ok"] is True
    made.change_events(run, lambda events: [events.append(events[15])])
    result = CliRunner().invoke(app, ["invariants", str(run)])
    assert isinstance(result.exception, InvariantBroken)
    assert "trained_once: BROKEN" in result.stdout
    assert "! events.jsonl:27" in result.stdout
    result = CliRunner().invoke(app, ["invariants", str(run), "--json"])
    assert json.loads(result.stdout)["ok"] is False
