"""Whatever stands in a run's files, the check ends with findings, never with an error of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tersely.invariants import check_run
from tersely.testing.modules import load_module

made = load_module(Path(__file__).with_name("made_run.py"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FILES = ("report.json", "best.json", "evaluation-after.json", "checkpoints/step-000002/state.json")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.make_run(tmp_path / "run")


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_events_rows_and_facts_of_any_shape(run: Path, data: st.DataObject) -> None:
    events = run / "events.jsonl"
    before = events.read_text()
    items = [json.loads(line) for line in before.splitlines()]
    for _ in range(data.draw(st.integers(1, 4))):
        item = data.draw(st.sampled_from(items))
        item[data.draw(st.sampled_from(sorted(item)))] = data.draw(VALUES)
    made.write_lines(events, items)
    (run / "samples.jsonl").write_text(json.dumps(data.draw(VALUES)) + "\n" + json.dumps({"group_id": [], "step": {}}))
    name = data.draw(st.sampled_from(FILES))
    keys = ("policy_version", "weights_sha256", "final_weights_sha256", "groups", "tensors_sha256")
    (run / name).write_text(json.dumps({key: data.draw(VALUES) for key in keys}))
    try:
        json.dumps(check_run(run).to_json())
    finally:
        events.write_text(before)


@pytest.mark.parametrize("content", [b"", b"\xff" * 9, b"\x05\0\0\0\0\0\0\0[1,2]", b"[" * 100_000])
def test_files_of_anything(run: Path, content: bytes) -> None:
    for name in ("policy/model.safetensors", "events.jsonl", "log/run.wal", "samples.jsonl", *FILES):
        (run / name).write_bytes(content)
        check_run(run)
