"""What a user gets for wrong input: its own exit code, one message that says what to do, nothing half-written."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tersely import errors
from tersely.models.tiny import make_tiny_model
from tersely.queue.embedded import EmbeddedServer

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"

pytestmark = pytest.mark.timeout(180)


def refuse(run_dir: Path, expected: type[errors.TerselyError], *sets: str, recipe: Path = TINY) -> str:
    """Runs `tersely up` and checks that it ends as an error of this kind; returns its message."""
    command = [sys.executable, "-m", "tersely.cli", "up", str(recipe), "--run-dir", str(run_dir), "--plain"]
    for item in sets:
        command += ["--set", item]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == expected.exit_code, output
    assert "Traceback" not in output
    assert output.count("error[") == 1, output
    assert f"error[{expected.kind}]:" in output
    assert "what to do:" in output
    assert not run_dir.exists(), sorted(run_dir.rglob("*"))
    return output


def data_file(tmp_path: Path, *records: object) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(TINY.read_text().replace("learning_rate", "learningrate"))
    assert "learner.learning_rate" in refuse(tmp_path / "run", errors.ConfigUnknownKey, recipe=recipe)
    command = [sys.executable, "-m", "tersely.cli", "config", "check", str(recipe)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == errors.ConfigUnknownKey.exit_code


def test_an_empty_data_set(tmp_path: Path) -> None:
    folder = data_file(tmp_path)
    assert str(folder) in refuse(tmp_path / "run", errors.DataEmpty, f"data.source={folder}")


def test_a_record_without_document_is_named_by_line(tmp_path: Path) -> None:
    folder = data_file(tmp_path, {"id": "a", "document": "One. Two.", "summary": "1"}, {"id": "b", "summary": "2"})
    output = refuse(tmp_path / "run", errors.DataRecord, f"data.source={folder}")
    assert "train.jsonl:2" in output
    assert "document" in output


def test_a_model_folder_without_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_tiny_model(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    assert str(folder) in refuse(tmp_path / "run", errors.ModelTokenizerMissing, f"model.name={folder}")


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refuse(tmp_path / "run", errors.PortBusy, f"rpc.port={port}")


def test_beyond_loopback_without_tls(tmp_path: Path) -> None:
    refuse(tmp_path / "run", errors.PlaintextRefused, "rpc.host=0.0.0.0")


def test_a_redis_that_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    assert str(port) in refuse(tmp_path / "run", errors.RedisUnreachable, f"queue.url=redis://127.0.0.1:{port}")


@pytest.fixture
def guarded_url(tmp_path: Path) -> Iterator[str]:
    """A server that wants a password, without one in the URL."""
    import redis

    with EmbeddedServer(tmp_path / "guarded") as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        client = redis.Redis(port=port)
        client.config_set("requirepass", "open-sesame")
        yield f"127.0.0.1:{port}"
        client.close()
        with redis.Redis(port=port, password="open-sesame") as opened:
            opened.config_set("requirepass", "")
    shutil.rmtree(tmp_path / "guarded", ignore_errors=True)


def test_a_wrong_redis_password_which_is_never_shown(tmp_path: Path, guarded_url: str) -> None:
    output = refuse(tmp_path / "run", errors.RedisAuth, f"queue.url=redis://:wr0ng-s3cret@{guarded_url}")
    assert "wr0ng-s3cret" not in output
    refuse(tmp_path / "run", errors.RedisAuth, f"queue.url=redis://{guarded_url}")
