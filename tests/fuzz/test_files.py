"""Files that people or other machines wrote: read, or refused with a way out, whatever is in them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tersely.ablation.plan import load_matrix
from tersely.cli.label import read_rows as read_rows_to_label
from tersely.config.load import load_recipe, read_recipe
from tersely.data.jsonl import read_jsonl
from tersely.errors import TerselyError
from tersely.evaluation.files import log_final, read_evaluation
from tersely.invariants.files import policy_sha256
from tersely.jobs.rows import check_rows, in_batches, read_rows
from tersely.judge.labels import read_judgements, read_labels
from tersely.judge.reply import BadReply, read_reply
from tersely.models.folder import check_model_folder
from tersely.rpc.address import parse_address
from tersely.scorer.rows import row_input
from tersely.supervise.failures import read_failure
from tersely.supervise.run_dir import read_json
from tersely.telemetry.jsonl import read_json_lines
from tersely.testing.fuzzing import damaged, deep, dumped, fuzzed, json_objects, json_values, refused

RECORD = {"id": "a", "document": "Some text.", "summary": "Text.", "completion": "Te.", "reference": "Text."}
ROW = {**RECORD, "target_tokens": 8, "completion_tokens": 3, "stopped": True, "group": "g"}
LABEL = {"id": "a", "rater": "me", "labels": {"clarity": 7, "coverage": None}, "document": "d", "completion": "c"}
JUDGED = {"id": "a", "axes": {"clarity": {"score": 0.7}, "coverage": 0.3}, "judge": "j", "rubrics": "r"}
ARM = {
    "metrics": {"rouge_l": 0.3},
    "examples": [
        {
            "id": "a",
            "completion": "c",
            "completion_tokens": 1,
            "stopped": True,
            "target_tokens": 2,
            "reference": "r",
            "metrics": {"rouge_l": 0.3},
        }
    ],
}
EVALUATION = {"kind": "evaluation", "greedy": ARM, "sampled": ARM, "baselines": {"lead": ARM}}
RECIPE = b"""[run]
steps = 3
seed = 1
[model]
name = "tiny"
[data]
source = "aclsum"
[queue]
lease_seconds = 30.0
[rewards.length]
weight = 1.0
"""
ABLATION = b"""[ablation]
recipe = "r.toml"
steps = 4
seeds = [1]
[configs.a]
rouge_l = 1.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def lines(example_: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Files of JSON lines."""
    line = json_objects(example_).map(dumped)
    return st.one_of(st.lists(line, max_size=3).map(b"\n".join), damaged(dumped(example_) + b"\n"))


@fuzzed(data=lines(RECORD))
@example(data=deep(100_000))
@example(data=b'{"document": ' + b"9" * 5000 + b"}")
def test_records(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    found = refused(lambda: read_jsonl(file))
    assert isinstance(found, TerselyError) or all(record.document.strip() for record in found)


@fuzzed(data=lines(ROW))
@example(data=deep(100_000))
@example(data=b'{"id": "\\ud800", "completion": "c"}')
def test_rows_to_score(file: Path, data: bytes) -> None:
    def read() -> int:
        def check(row: dict[str, Any], where: str) -> None:
            row_input(row, "g", where)

        check_rows(file, check)
        return sum(len(batch.rows) for batch in in_batches(read_rows(file), 2))

    file.write_bytes(data)
    refused(read)


@fuzzed(data=lines(LABEL))
@example(data=deep(100_000))
def test_labels(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    found = refused(lambda: read_labels(file))
    if not isinstance(found, TerselyError):
        assert all(0 <= score <= 1 for label in found for score in label.scores.values())


@fuzzed(data=lines(JUDGED))
@example(data=deep(100_000))
def test_judgements(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    found = refused(lambda: read_judgements(file))
    if not isinstance(found, TerselyError):
        assert all(0 <= score <= 1 for each in found.values() for score in each.scores.values())


@fuzzed(data=lines(ROW))
@example(data=deep(100_000))
@example(data=b'{"id": "a", "document": "\\ud800", "completion": "c"}')
def test_rows_to_label(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    found = refused(lambda: read_rows_to_label(file))
    if not isinstance(found, TerselyError):
        for row in found:
            "".join(row.values()).encode()


@fuzzed(
    content=st.one_of(
        damaged(b'ok {"reason": "good", "score": 7}'), json_objects({"reason": "x", "score": 3}).map(dumped)
    )
)
@example(content=deep(100_000))
def test_replies_of_a_judge(content: bytes) -> None:
    try:
        found = read_reply(content.decode("utf-8", "replace"))
    except BadReply:
        return
    assert 0 <= found.score <= 10


@fuzzed(data=st.one_of(json_objects(EVALUATION).map(dumped), damaged(dumped(EVALUATION))))
@example(data=deep(100_000))
def test_evaluations(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    refused(lambda: read_evaluation(file))


@fuzzed(data=lines({"time": 1.0, "kind": "step", "data": "d", "split": "test"}))
@example(data=deep(100_000))
@example(data=b"[1]\n")
def test_logs_of_json_lines(file: Path, data: bytes) -> None:
    log = file.with_name("final-evaluations.jsonl")
    for path in (file, log):
        path.write_bytes(data)
    assert all(isinstance(item, dict) for item in read_json_lines(file))
    assert log_final(file.parent, {"data": "another", "split": "test"}) >= 1


@fuzzed(data=st.one_of(json_values("kind", "message").map(dumped), damaged(b'{"kind": "disk_full", "message": "m"}')))
@example(data=deep(100_000))
@example(data=b"[]")
def test_small_state_files(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert isinstance(read_json(file), dict | None)
    read_failure(file, 67)


@fuzzed(data=damaged(RECIPE))
@example(data=b"a = " + b"[" * 5000)
@example(data=b"a = " + b"9" * 5000)
@example(data=b'[model]\nname = "a\\u0000b"')
@example(data=b'[data]\nsource = "~no-such-user/x"')
def test_recipes(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    refused(lambda: load_recipe(file, environ={}))


@fuzzed(
    item=st.one_of(damaged(b"run.steps=10", b'data.source="x"', b"rewards.length.weight=1e3"), st.binary(max_size=20))
)
@example(item=b"run.steps=" + b"9" * 5000)
@example(item=b"run.steps=" + b"[" * 5000)
@example(item=b"queue.lease_seconds=1e999")
@example(item=b"run.steps=nan")
def test_overrides(item: bytes) -> None:
    text = item.decode("utf-8", "replace")
    refused(lambda: load_recipe(None, [text], environ={}))


@fuzzed(
    data=st.one_of(
        json_objects({"run": {"steps": 1}, "rewards": {"length": {"weight": 1.0}}}).map(dumped), damaged(b"{}")
    )
)
@example(data=deep(100_000))
def test_recipes_of_a_run(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    refused(lambda: read_recipe(file))


@fuzzed(0.3, data=damaged(ABLATION))
@example(data=b"a = " + b"[" * 5000)
def test_ablations(file: Path, data: bytes) -> None:
    file.with_name("r.toml").write_bytes(RECIPE)
    file.write_bytes(data)
    refused(lambda: load_matrix(file))


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [1, 4], "data_offsets": [8, 16]},
}


def tensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(16)


@fuzzed(data=st.one_of(json_objects(HEADER).map(dumped).map(tensors), damaged(tensors(dumped(HEADER)))))
@example(data=tensors(deep(50_000)))
@example(data=struct.pack("<Q", (1 << 64) - 1) + b"{}")
@example(data=tensors(b'{"a": {"data_offsets": [0, Infinity]}}'))
@example(data=tensors(b'{"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 16]}}'))
def test_headers_of_weight_files(file: Path, data: bytes) -> None:
    folder = file.with_name("model")
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(data)
    refused(lambda: check_model_folder(folder))
    assert policy_sha256(folder / "model.safetensors") is None or data


@fuzzed(index=json_objects({"weight_map": {"a": "model-1.safetensors"}}), config=json_values("vocab_size"))
@example(index={"weight_map": {"a": "../../outside.safetensors"}}, config={})
@example(index={"weight_map": {"a": "a\x00b"}}, config={})
@example(index={"weight_map": {"a": "\ud800"}}, config={})
@example(index={"weight_map": {"a": "x" * 5000}}, config={})
def test_indices_of_weight_files(file: Path, index: Any, config: Any) -> None:
    folder = file.with_name("model")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(dumped(config))
    (folder / "model.safetensors.index.json").write_bytes(dumped(index))
    file.with_name("outside.safetensors").write_bytes(tensors(dumped(HEADER)))
    assert isinstance(refused(lambda: check_model_folder(folder)), TerselyError)


@fuzzed(
    text=st.one_of(
        st.text(), damaged(b"127.0.0.1:50051", b"tls://[::1]:5", b"plain://host:1").map(lambda b: b.decode("latin-1"))
    )
)
@example(text="host:" + "9" * 5000)
@example(text="host:٣")
def test_addresses(text: str) -> None:
    found = refused(lambda: parse_address(text))
    if not isinstance(found, TerselyError):
        assert 0 < found.port < 65536
        assert TypeAdapter(bool).validate_python(found.loopback) in (True, False)


def test_a_recipe_as_it_should_be_is_read(file: Path) -> None:
    file.write_bytes(RECIPE)
    assert load_recipe(file, environ={}).recipe.run.steps == 3
    file.write_text(json.dumps(EVALUATION))
    assert read_evaluation(file)["kind"] == "evaluation"
