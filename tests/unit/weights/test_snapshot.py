import hashlib
from pathlib import Path

import pytest
import torch

from tersely.errors import ModelInvalid
from tersely.weights import model_files
from tersely.weights.digest import TensorHash, weights_sha256
from tersely.weights.model_files import read_model_files
from tersely.weights.receive import PayloadReceiver
from tersely.weights.snapshot import Snapshot


def build(tensors: dict[str, torch.Tensor], version: int = 0) -> Snapshot:
    return Snapshot.build(
        version, tensors, run_id="r", model_files=(), stop_token_ids=(2,), chunk_bytes=1024, incarnation=1
    )


def test_the_hash_of_weights_is_pinned() -> None:
    tensors = [TensorHash("b", "F32", (), "2" * 64), TensorHash("a", "BF16", (3, 4), "1" * 64)]
    lines = f"a:BF16:3x4:{'1' * 64}\nb:F32:-:{'2' * 64}\n"
    assert weights_sha256(tensors) == hashlib.sha256(lines.encode()).hexdigest()
    assert weights_sha256(reversed(tensors)) == weights_sha256(tensors)


def test_name_dtype_shape_and_values_all_change_the_hash() -> None:
    base = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    variants = [{"a": base}, {"b": base}, {"a": base.reshape(3, 2)}, {"a": base.bfloat16()}, {"a": base + 1}]
    assert len({build(variant).label.weights_sha256 for variant in variants}) == len(variants)


def test_the_version_does_not_change_the_hash() -> None:
    tensors = {"a": torch.ones(2)}
    assert build(tensors, 1).label.weights_sha256 == build(tensors, 2).label.weights_sha256


def test_the_payload_is_the_raw_bytes_in_order_of_names() -> None:
    a, b = torch.tensor([1.5, -2.0]), torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16)
    snapshot = build({"b": b, "a": a})
    raw_a, raw_b = a.numpy().tobytes(), b.view(torch.int16).numpy().tobytes()
    assert bytes(snapshot.payload) == raw_a + raw_b
    assert [t.name for t in snapshot.manifest.tensors] == ["a", "b"]
    assert snapshot.manifest.tensors[1].offset_bytes == len(raw_a)
    assert snapshot.manifest.tensors[1].sha256 == hashlib.sha256(raw_b).hexdigest()
    assert snapshot.manifest.payload_sha256 == snapshot.label.weights_sha256


def test_a_transposed_view_is_sent_row_major() -> None:
    view = torch.arange(6, dtype=torch.float32).reshape(2, 3).t()
    assert bytes(build({"a": view}).payload) == view.contiguous().numpy().tobytes()


def test_later_changes_of_the_tensors_do_not_reach_the_snapshot() -> None:
    tensor = torch.ones(4)
    snapshot = build({"a": tensor})
    before = bytes(snapshot.payload)
    tensor.zero_()
    assert bytes(snapshot.payload) == before
    with pytest.raises(TypeError):
        snapshot.payload[0] = 1


@pytest.mark.parametrize("tensors", [{}, {"a": torch.ones(2, dtype=torch.float64)}, {"a": torch.ones(2).half()}])
def test_what_can_not_be_published_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="publish"):
        build(tensors)


def test_a_tensor_off_its_word_border_arrives_equal() -> None:
    from tersely.v1.checkpoint_pb2 import FetchWeightsResponse

    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.randn(5), "c": torch.zeros(0)}
    snapshot = build(tensors)
    receiver = PayloadReceiver(snapshot.label)
    sha = snapshot.manifest.payload_sha256
    receiver.feed(FetchWeightsResponse(manifest=snapshot.manifest, payload_sha256=sha))
    assert not receiver.complete
    for at in range(0, len(snapshot.payload), 4):
        piece = bytes(snapshot.payload[at : at + 4])
        receiver.feed(FetchWeightsResponse(offset_bytes=at, data=piece, payload_sha256=sha))
    arrived = receiver.tensors()
    assert arrived["b"].data_ptr() % 4 == 0
    assert all(torch.equal(arrived[name], tensors[name]) for name in tensors)


def test_only_config_and_tokenizer_files_travel(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", "modeling_x.py"):
        (tmp_path / name).write_text("{}")
    assert [file.name for file in read_model_files(tmp_path)] == ["config.json", "tokenizer.json"]


def test_a_model_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MOST_BYTES", 10)
    (tmp_path / "config.json").write_text("x" * 11)
    with pytest.raises(ModelInvalid, match=r"config\.json has 11 bytes"):
        read_model_files(tmp_path)
