import json
from collections.abc import Iterator

import pytest
import structlog

from tersely.telemetry.logging import configure_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_json_lines_carry_role_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("scorer", json=True)
    structlog.get_logger().info("scored", groups=2)
    out, err = capsys.readouterr()
    line = json.loads(err)
    assert out == ""
    assert line["event"] == "scored"
    assert (line["role"], line["level"], line["groups"]) == ("scorer", "info", 2)
    assert line["timestamp"].endswith("Z")
    assert line["pid"] > 0


def test_text_goes_to_stderr_and_lower_levels_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("rollout", level="warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert "loud" in err
    assert "quiet" not in err


def test_a_traceback_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", json=True)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"][0]["exc_value"] == "broken"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("trainer", level="LOUD")
