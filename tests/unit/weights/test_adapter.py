import math

import pytest
import torch

from tersely.errors import WeightsMismatch
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1.checkpoint_pb2 import Adapter, FetchWeightsResponse
from tersely.weights.adapter import AdapterLayer, PackedAdapter, adapter_bytes, merge_into, merge_payload
from tersely.weights.receive import HeldWeights, PayloadReceiver
from tersely.weights.snapshot import Snapshot


def make_layer(seed: int = 0, outputs: int = 60, inputs: int = 40, rank: int = 8) -> tuple[torch.Tensor, AdapterLayer]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(outputs, inputs, generator=generator).bfloat16()
    down = torch.randn(rank, inputs, generator=generator)
    return base, AdapterLayer("b.weight", down, torch.randn(outputs, rank, generator=generator) * 0.02, 2.0)


def merged(base: torch.Tensor, layer: AdapterLayer) -> torch.Tensor:
    target = torch.empty_like(base)
    merge_into(target, base, layer.down, layer.up, layer.scale)
    return target


def build(
    version: int, weight: torch.Tensor, layer: AdapterLayer | None = None, to: WeightsLabel | None = None
) -> Snapshot:
    return Snapshot.build(
        version,
        # Three bf16 values first, so that the weight lies at an odd word.
        {"a.bias": torch.ones(3).bfloat16(), "b.weight": weight},
        run_id="r",
        model_files=(),
        stop_token_ids=(),
        chunk_bytes=1024,
        incarnation=1,
        adapter=None if layer is None else [layer],
        adapter_base=to,
    )


def made() -> tuple[Snapshot, Snapshot]:
    base, layer = make_layer()
    first = build(0, base)
    return first, build(1, merged(base, layer), layer, first.label)


def test_merging_is_the_formula_rounded_once() -> None:
    base, layer = make_layer(outputs=3000, inputs=1000)
    expected = (base.double() + layer.scale * (layer.up.double() @ layer.down.double())).float().bfloat16()
    assert torch.equal(merged(base, layer), expected)


def test_the_order_of_summing_changes_no_bit() -> None:
    base, layer = make_layer(1, outputs=500, inputs=400, rank=64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    other = AdapterLayer(layer.tensor, layer.down[order], layer.up[:, order], layer.scale)
    assert torch.equal(merged(base, layer), merged(base, other))
    single = [(base.float() + 2 * (x.up @ x.down)).bfloat16() for x in (layer, other)]
    assert not torch.equal(*single)  # float32 would


def test_a_receiver_makes_the_same_bytes() -> None:
    first, second = made()
    assert second.adapter is not None
    payload = merge_payload(
        second.adapter.layout, second.manifest.tensors, first.payload, bytearray(second.adapter.data)
    )
    assert payload == second.payload
    assert adapter_bytes(second.adapter.layout, second.manifest.tensors) == len(second.adapter.data)


def test_an_adapter_without_a_base_that_is_kept_is_not_sent() -> None:
    base, layer = make_layer()
    assert build(1, merged(base, layer), layer).adapter is None


def feed(
    layout: Adapter | None = None, data: bytes | None = None, *, accepts: bool = True, base_sha256: str = ""
) -> bytes:
    first, second = made()
    assert second.adapter is not None
    held = HeldWeights(first.label, first.manifest, bytearray(first.payload))
    receiver = PayloadReceiver(second.label, held, accepts_adapter=accepts)
    data = second.adapter.data if data is None else data
    sha256 = PackedAdapter(Adapter(), data, second.adapter.sha256).sha256
    receiver.feed(
        FetchWeightsResponse(
            manifest=second.manifest,
            payload_bytes=len(data),
            payload_sha256=sha256,
            base_weights_sha256=base_sha256 or first.label.weights_sha256,
            adapter=second.adapter.layout if layout is None else layout,
        )
    )
    receiver.feed(FetchWeightsResponse(data=data, payload_bytes=len(data), payload_sha256=sha256))
    assert receiver.complete
    assert receiver.is_adapter
    assert held.payload == first.payload
    assert receiver.held().payload == second.payload
    return bytes(second.payload)


def test_an_adapter_arrives() -> None:
    feed()


def layout(tensor: str = "b.weight", rank: int = 8, scale: float = 2.0, times: int = 1) -> Adapter:
    result = Adapter()
    for _ in range(times):
        result.layers.add(tensor=tensor, rank=rank, scale=scale)
    return result


@pytest.mark.parametrize(
    "wrong",
    [
        layout("c.weight"),
        layout("../b.weight"),
        layout("a.bias"),
        layout(rank=0),
        layout(rank=9),
        layout(rank=1 << 31),
        layout(scale=math.nan),
        layout(scale=math.inf),
        layout(times=2),
        layout(times=0),
        layout(scale=2.5),
    ],
)
def test_a_layout_that_is_not_the_adapters_is_refused(wrong: Adapter) -> None:
    with pytest.raises(WeightsMismatch):
        feed(wrong)


def test_a_damaged_adapter_is_refused() -> None:
    _, second = made()
    assert second.adapter is not None
    for data in (
        second.adapter.data[:-4],
        second.adapter.data + bytes(4),
        bytes([second.adapter.data[0] ^ 1]) + second.adapter.data[1:],
    ):
        with pytest.raises(WeightsMismatch):
            feed(data=data)


def test_an_adapter_that_was_not_asked_for_or_is_against_other_weights_is_refused() -> None:
    with pytest.raises(WeightsMismatch, match="not asked for"):
        feed(accepts=False)
    with pytest.raises(WeightsMismatch, match="not here"):
        feed(base_sha256="f" * 64)


def test_a_label_of_another_hash_is_not_made_by_any_adapter() -> None:
    first, second = made()
    assert second.adapter is not None
    want = WeightsLabel(PolicyVersion(1), "0" * 64)
    receiver = PayloadReceiver(
        want, HeldWeights(first.label, first.manifest, bytearray(first.payload)), accepts_adapter=True
    )
    with pytest.raises(WeightsMismatch, match="another version"):
        receiver.feed(FetchWeightsResponse(manifest=second.manifest))
