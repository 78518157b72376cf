"""What needs DeepEval. Run by `make test-judge` (and `make test`), in the judge's environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tersely.config.judge import JudgeSection
from tersely.testing.judge_server import RuleJudgeServer

if TYPE_CHECKING:
    from tersely.judge.judging import Judge

if find_spec("deepeval") is None:
    collect_ignore_glob = ["test_*.py"]

MakeJudge = Callable[..., "Judge"]


@pytest.fixture
def server() -> Iterator[RuleJudgeServer]:
    """An endpoint that judges by rule and fails as its attributes say."""
    with RuleJudgeServer() as found:
        yield found


@pytest.fixture
def make_judge(server: RuleJudgeServer, tmp_path: Path) -> Iterator[MakeJudge]:
    """Makes judges of the endpoint with one cache; settings are those of [judge]."""
    from tersely.judge.judging import Judge

    made: list[Judge] = []

    def make(*, patient: bool = False, **settings: Any) -> Judge:
        given = {
            "endpoint": server.url,
            "cache": tmp_path / "cache",
            "timeout_seconds": 20.0,
            "backoff_seconds": 0.001,
            "backoff_max_seconds": 0.01,
            **settings,
        }
        made.append(Judge(JudgeSection(**given), patient=patient))
        return made[-1]

    yield make
    for judge in made:
        judge.close()
