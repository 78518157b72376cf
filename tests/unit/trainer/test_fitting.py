"""Settings that fit the learner to a machine: the log has them per stretch, and a replay trains each step by them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tersely.trainer.replay as replay
from tersely.config import Recipe
from tersely.config.learner import LearnerSection
from tersely.testing.modules import load_module
from tersely.trainer.environment import FITTED, environment_facts, fitted
from tersely.trainer.history import fold
from tersely.trainer.run_directory import _FREE_LEARNER_KEYS
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import group_pb2, log_pb2

_learners = load_module(Path(__file__).with_name("learners.py"))
make_learner, make_group, same = _learners.make_learner, _learners.make_group, _learners.same

OTHER: dict[str, Any] = {
    "recompute": True,
    "micro_batch_tokens": 64,
    "logit_chunk_tokens": 4,
    "shared_prompt": False,
}


def test_whatever_a_resume_may_change_is_a_fact_of_the_log() -> None:
    assert {"threads", "device", "parallel", *FITTED} == set(_FREE_LEARNER_KEYS)
    facts = environment_facts("cpu", 1, LearnerSection(**OTHER), ranks=2)
    assert {"threads", "device", "ranks", "learner.parallel"} <= facts.keys()
    back = fitted(LearnerSection(learning_rate=0.5), facts)
    assert back == LearnerSection(learning_rate=0.5, **OTHER)
    assert fitted(back, {"threads": "1"}) == back, "logs from before have no such facts"


@pytest.mark.parametrize("setting", OTHER)
def test_a_fitted_learner_goes_on_as_one_that_was_made_so(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    other = {setting: OTHER[setting]}
    batch = [make_group(1, lengths=[20, 30, 25, 15]), make_group(2, lengths=[20, 30, 25, 15])]
    here = make_learner(monkeypatch)
    here.train(batch, 1)
    there = make_learner(monkeypatch, **other)
    there.load_state(*here.state())
    here.fit(LearnerSection(device="cpu", threads=1, learning_rate=1e-3, **other))
    for learner in (here, there):
        for step in (2, 3):
            learner.train(batch, step)
    assert same(here.state()[0], there.state()[0])
    assert here._forward is there._forward
    assert here._settings == there._settings


def test_a_replay_trains_each_step_by_the_settings_of_its_stretch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    label = WeightsLabel(PolicyVersion(0), "same")

    def started(after: int, **learner: Any) -> log_pb2.LogRecord:
        facts = environment_facts("cpu", 1, LearnerSection(**learner))
        return log_pb2.LogRecord(
            trainer_started=log_pb2.TrainerStarted(
                run_id="r", initial_weights=label.to_proto(), environment=facts, checkpoint_step=after
            )
        )

    def trained(step: int) -> list[log_pb2.LogRecord]:
        formed = log_pb2.BatchFormed(step=step, groups=[group_pb2.ScoredGroup()])
        committed = log_pb2.VersionCommitted(step=step, weights=label.to_proto())
        return [log_pb2.LogRecord(batch_formed=formed), log_pb2.LogRecord(version_committed=committed)]

    records = [started(0), *trained(1), started(1, **OTHER), *trained(2), started(2), *trained(3)]
    fits: list[int] = []
    at_step: dict[int, int] = {}
    learner = SimpleNamespace(
        device="cpu",
        fit=lambda section: fits.append(section.micro_batch_tokens),
        train=lambda batch, step: at_step.setdefault(step, fits[-1]),
    )
    begun: list[LearnerSection] = []
    monkeypatch.setattr(replay, "_read", lambda run_dir: (Recipe(), fold(records)))
    monkeypatch.setattr(replay, "_learner", lambda recipe, settings, threads: begun.append(settings) or learner)
    monkeypatch.setattr(replay, "_weights_sha256", lambda learner: "same")
    result = replay.run_replay(tmp_path)
    default = LearnerSection().micro_batch_tokens
    assert at_step == {1: default, 2: 64, 3: default}
    assert begun == [LearnerSection()]
    assert result["environment_differences"] == []
