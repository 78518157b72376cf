"""Pickles, code and paths in what others send or leave: refused, and never run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from google.protobuf.message import DecodeError
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from structlog.testing import capture_logs

from tersely.config.load import known_keys, load_recipe
from tersely.errors import CheckpointInvalid, ConfigUnknownKey, LogCorrupt, ModelInvalid
from tersely.jobs import JobWorker
from tersely.jobs.keys import open_key
from tersely.models.folder import check_model_folder
from tersely.models.load import load_policy
from tersely.scorer.ring import MalformedGroup, parse_group
from tersely.trainer.checkpoint import list_checkpoints, write_checkpoint
from tersely.trainer.wal import read_records
from tersely.v1 import group_pb2, log_pb2, node_pb2
from tersely.weights.model_files import check_name


def pickle_that_touches(mark: Path) -> bytes:
    """Runs `touch` in whoever unpickles it; written by hand, since nothing here imports a pickler."""
    return b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def work_off(client: redis.Redis, queue: Queue) -> list[dict[str, Any]]:
    """Has a worker work until the queue is empty; what it logged, and what its handler was given."""
    stopping, given = threading.Event(), []

    def handler(payload: dict[str, Any]) -> dict[str, Any]:
        given.append(payload)
        return {}

    worker = JobWorker(client, {"score": handler})
    step = worker._step

    def once_more() -> None:
        step()
        if not queue.count and not queue.started_job_registry.get_job_count(cleanup=False):
            stopping.set()

    worker._step = once_more  # type: ignore[method-assign]
    with capture_logs() as logs:
        worker.run(stopping)
    assert given == []
    return [dict(line) for line in logs]


def test_a_job_that_names_os_system_is_refused_and_logged(valkey_client: redis.Redis, mark: Path) -> None:
    queue = Queue("score", valkey_client, serializer=JSONSerializer)
    job = queue.enqueue("os.system", f"touch {mark}")
    logs = work_off(valkey_client, queue)
    assert not mark.exists()
    (line,) = [line for line in logs if line["event"] == "job_raised"]
    assert line["job"] == job.id
    assert "'os.system' is no handler of this worker" in line["traceback"]


@pytest.mark.parametrize("field", ["data", "meta"])
def test_a_pickle_as_a_job_is_not_loaded(valkey_client: redis.Redis, mark: Path, field: str) -> None:
    queue = Queue("score", valkey_client, serializer=JSONSerializer)
    job = queue.enqueue("score", "t", 0, {})
    valkey_client.hset(job.key, field, pickle_that_touches(mark))
    work_off(valkey_client, queue)
    assert not mark.exists()
    assert not valkey_client.exists(open_key("t"))
    assert isinstance(job, Job)


def test_a_pickle_as_a_message_is_none(mark: Path) -> None:
    data = pickle_that_touches(mark)
    with pytest.raises(MalformedGroup):
        parse_group(data)
    for message in (group_pb2.PromptGroup, group_pb2.ScoredGroup, log_pb2.LogRecord, node_pb2.Heartbeat):
        with pytest.raises(DecodeError):
            message.FromString(data)
    assert not mark.exists()


def test_a_pickle_as_a_log_is_refused(tmp_path: Path, mark: Path) -> None:
    from tersely.telemetry.framed import framed

    log = tmp_path / "log"
    log.write_bytes(framed(pickle_that_touches(mark)))
    with pytest.raises(LogCorrupt):
        list(read_records(log))
    assert not mark.exists()


def test_a_pickle_as_a_checkpoint_is_refused_also_with_its_right_hash(tmp_path: Path, mark: Path) -> None:
    import hashlib
    import json

    import torch

    from tersely.trainer.checkpoint import Keeping

    folder = write_checkpoint(
        tmp_path / "checkpoints",
        step=1,
        policy_version=1,
        weights_sha256="ab" * 32,
        tensors={"a": torch.zeros(2)},
        learner={},
        keeping=Keeping(1),
    )
    data = pickle_that_touches(mark)
    (folder / "state.safetensors").write_bytes(data)
    (checkpoint,) = list_checkpoints(folder.parent)
    with pytest.raises(CheckpointInvalid, match="does not have the hash"):
        checkpoint.tensors()
    meta = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**meta, "tensors_sha256": hashlib.sha256(data).hexdigest()}))
    (checkpoint,) = list_checkpoints(folder.parent)
    with pytest.raises(CheckpointInvalid, match="not a safetensors file"):
        checkpoint.tensors()
    assert not mark.exists()


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_as_the_weights_of_a_model_is_refused(tmp_path: Path, mark: Path, name: str) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / name).write_bytes(pickle_that_touches(mark))
    with pytest.raises(ModelInvalid):
        load_policy(folder)
    assert not mark.exists()


def test_code_that_a_model_brings_is_not_run(tmp_path: Path, mark: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text(
        '{"model_type": "evil", "architectures": ["Evil"],'
        ' "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Evil"}}'
    )
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ModelInvalid):
        load_policy(folder)
    assert not mark.exists()


def test_no_key_of_a_recipe_switches_code_of_models_on() -> None:
    assert [key for key in known_keys() if "trust" in key or "remote_code" in key] == []
    for key in ("model.trust_remote_code", "trust_remote_code", "run.trust_remote_code"):
        with pytest.raises(ConfigUnknownKey):
            load_recipe(None, [f"{key}=true"], environ={})


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/passwd", "a/config.json", "evil.py", "config.json\x00", "pytorch_model.bin", ""]
)
def test_a_file_that_a_trainer_offers_can_not_leave_its_folder(name: str) -> None:
    with pytest.raises(ModelInvalid):
        check_name(name)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "a/../../outside.safetensors"])
def test_an_index_of_weights_can_not_point_out_of_its_folder(tmp_path: Path, name: str) -> None:
    import json

    import torch
    from safetensors.torch import save_file

    folder = model_folder(tmp_path / "model")
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelInvalid, match=r"lacks the weight files outside\.safetensors"):
        check_model_folder(folder)
