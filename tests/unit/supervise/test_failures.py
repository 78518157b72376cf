"""Errors on their way from a child to its supervisor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersely.errors import ModelTokenizerMissing, concrete_errors
from tersely.supervise.failures import ERROR_FILE_ENV, FATAL_EXIT_CODES, read_failure, report_failure


def test_an_error_arrives_as_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trainer.error"
    monkeypatch.setenv(ERROR_FILE_ENV, str(path))
    report_failure(ModelTokenizerMissing("No tokenizer in x.", "Add it."))
    found = read_failure(path, 31)
    assert type(found) is ModelTokenizerMissing
    assert found.render() == ModelTokenizerMissing("No tokenizer in x.", "Add it.").render()


def test_an_error_of_another_exit_code_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trainer.error"
    monkeypatch.setenv(ERROR_FILE_ENV, str(path))
    report_failure(ModelTokenizerMissing("No tokenizer in x."))
    assert read_failure(path, -9) is None
    assert read_failure(tmp_path / "absent", 31) is None


def test_without_a_supervisor_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ERROR_FILE_ENV, raising=False)
    monkeypatch.chdir(tmp_path)
    report_failure(ModelTokenizerMissing("No tokenizer in x."))
    assert list(tmp_path.iterdir()) == []


def test_what_a_restart_can_cure_is_not_fatal() -> None:
    curable = {cls.kind for cls in concrete_errors() if cls.exit_code not in FATAL_EXIT_CODES}
    assert {"redis_unreachable", "trainer_unreachable", "lease_lost", "weights_mismatch", "engine_failed"} <= curable
    assert not {"config_value", "data_record", "model_missing", "port_busy", "reward_unknown"} & curable
