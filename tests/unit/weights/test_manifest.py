"""A manifest from a trainer that lies: refused before any room is made for what it promises."""

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError

from tersely.errors import WeightsMismatch
from tersely.testing.channel import make_weights
from tersely.types import WeightsLabel
from tersely.v1.checkpoint_pb2 import FetchWeightsResponse, WeightsManifest
from tersely.weights.digest import details_sha256, manifest_sha256
from tersely.weights.manifest import is_tensor_name
from tersely.weights.model_files import ModelFile
from tersely.weights.probe import Probe
from tersely.weights.receive import PayloadReceiver
from tersely.weights.snapshot import Snapshot


def make_snapshot() -> Snapshot:
    return Snapshot.build(
        3, make_weights(), run_id="r", model_files=(), stop_token_ids=(2,), chunk_bytes=1024, incarnation=1
    )


def receive(manifest: WeightsManifest, *, relabel: bool = True) -> None:
    """Feeds the manifest to a receiver that wants exactly this one: everything but the lie is consistent."""
    if relabel:
        manifest.weights.weights_sha256 = manifest_sha256(manifest)
        manifest.details_sha256 = details_sha256(manifest)
    receiver = PayloadReceiver(WeightsLabel.from_proto(manifest.weights))
    receiver.feed(
        FetchWeightsResponse(
            manifest=manifest, payload_bytes=manifest.payload_bytes, payload_sha256=manifest.payload_sha256
        )
    )


def rename(name: str) -> Callable[[WeightsManifest], None]:
    def lie(manifest: WeightsManifest) -> None:
        manifest.tensors[0].name = name

    return lie


def set_all(**fields: int | str) -> Callable[[WeightsManifest], None]:
    def lie(manifest: WeightsManifest) -> None:
        for name, value in fields.items():
            setattr(manifest.tensors[1], name, value)

    return lie


def reshape(*shape: int) -> Callable[[WeightsManifest], None]:
    def lie(manifest: WeightsManifest) -> None:
        manifest.tensors[1].shape[:] = shape

    return lie


def grow(length: int) -> Callable[[WeightsManifest], None]:
    """One consistent tensor of so many bytes."""

    def lie(manifest: WeightsManifest) -> None:
        del manifest.tensors[:]
        manifest.tensors.add(name="a", dtype="BF16", shape=[length // 2], offset_bytes=0, length_bytes=length)
        manifest.payload_bytes = length

    return lie


def empty_of_unknown_type(manifest: WeightsManifest) -> None:
    assert manifest.tensors[2].length_bytes == 0
    manifest.tensors[2].dtype = "F64"


def empty_of_a_shape_beyond_memory(manifest: WeightsManifest) -> None:
    manifest.tensors[2].shape[:] = [0, 1 << 60]


LIES = {
    "a path in a name": rename("../../etc/passwd"),
    "an absolute path in a name": rename("/etc/passwd"),
    "dots in a name": rename("a..b"),
    "a line in a name": rename("a:F32:5:0\nb"),
    "a colon in a name": rename("a:b"),
    "no name": rename(""),
    "a name as long as a book": rename("a" * 10_000),
    "a name that is there already": rename("b.weight"),
    "an offset beyond the end": set_all(offset_bytes=1 << 62),
    "an offset into another tensor": set_all(offset_bytes=2),
    "a length beyond the end": set_all(length_bytes=1 << 62),
    "a length of nothing": set_all(length_bytes=0),
    "an unknown type": set_all(dtype="F64"),
    "a pickled type": set_all(dtype="object"),
    "an unknown type of an empty tensor": empty_of_unknown_type,
    "another type": set_all(dtype="F32"),
    "another shape": reshape(7, 7),
    "a shape beyond all numbers": reshape(1 << 63, 1 << 63),
    "a shape of a thousand dimensions": reshape(*[1] * 1000),
    "an empty tensor of a shape beyond memory": empty_of_a_shape_beyond_memory,
    "more bytes than this machine has": grow(1 << 47),
    "more bytes than any machine has": grow((1 << 62) + 2),
    "a payload longer than its tensors": lambda manifest: setattr(manifest, "payload_bytes", 1 << 40),
    "a payload shorter than its tensors": lambda manifest: setattr(manifest, "payload_bytes", 1),
}


def test_an_honest_manifest_is_taken() -> None:
    receive(make_snapshot().manifest)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_is_refused(lie: Callable[[WeightsManifest], None]) -> None:
    manifest = make_snapshot().manifest
    lie(manifest)
    with pytest.raises(WeightsMismatch):
        receive(manifest)


@pytest.mark.parametrize("field", ["name", "sha256", "dtype"])
def test_a_manifest_changed_under_the_same_label_is_refused(field: str) -> None:
    manifest = make_snapshot().manifest
    setattr(manifest.tensors[1], field, "b.other" if field == "name" else "0" * 64)
    with pytest.raises(WeightsMismatch, match="add up"):
        receive(manifest, relabel=False)


def damage_probe(manifest: WeightsManifest) -> None:
    manifest.probe.logprobs[0] += 1


def remove_probe(manifest: WeightsManifest) -> None:
    manifest.ClearField("probe")


def damage_stop_id(manifest: WeightsManifest) -> None:
    manifest.stop_token_ids[0] ^= 1


def damage_file_hash(manifest: WeightsManifest) -> None:
    manifest.model_files[0].sha256 = "0" * 64


@pytest.mark.parametrize("damage", [damage_probe, remove_probe, damage_stop_id, damage_file_hash])
def test_damage_beside_the_weights_is_found(damage: Callable[[WeightsManifest], None]) -> None:
    manifest = Snapshot.build(
        3,
        make_weights(),
        run_id="r",
        model_files=(ModelFile("config.json", b"{}", "1" * 64),),
        stop_token_ids=(2,),
        chunk_bytes=1024,
        incarnation=1,
        probe=Probe((4, 5, 6), (-1.5, -2.5)),
    ).manifest
    receive(manifest, relabel=False)
    damage(manifest)
    with pytest.raises(WeightsMismatch, match="beside"):
        receive(manifest, relabel=False)


@pytest.mark.parametrize("cut", range(1, 400, 20))
def test_a_manifest_that_breaks_off_is_refused(cut: int) -> None:
    snapshot = make_snapshot()
    whole = snapshot.manifest.SerializeToString()
    try:
        manifest = WeightsManifest.FromString(whole[: len(whole) * cut // 400])
    except DecodeError:  # gRPC ends the stream on it
        return
    with pytest.raises(WeightsMismatch):
        PayloadReceiver(snapshot.label).feed(
            FetchWeightsResponse(manifest=manifest, payload_sha256=snapshot.manifest.payload_sha256)
        )


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "w", "h.0.attn.c_attn.bias"]
)
def test_names_of_real_models_are_names(name: str) -> None:
    assert is_tensor_name(name)


def test_what_no_receiver_takes_is_not_published() -> None:
    with pytest.raises(ValueError, match="name"):
        Snapshot.build(
            0,
            {"a/b": make_weights()["a.bias"]},
            run_id="r",
            model_files=(),
            stop_token_ids=(),
            chunk_bytes=1024,
            incarnation=1,
        )
