from __future__ import annotations

import pytest
import torch

from tersely.rollout.engines.kv_cache import CacheShape, SlotBuffer

SHAPE = CacheShape(layers=2, heads=1, head_size=4, dtype=torch.float32, device=torch.device("cpu"))


def sizes(buffer: SlotBuffer) -> list[tuple[int, ...]]:
    return [tuple(layer.shape) for layer in buffer.layers]


def test_a_buffer_that_can_not_grow_stays_as_it_was_and_grows_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    buffer = SlotBuffer(SHAPE)
    buffer.ensure(1, 10)
    buffer.layers[1][:, 0, :, 3] = 7.0
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros", no_memory)
        with pytest.raises(RuntimeError):
            buffer.ensure(4, 100)
        with pytest.raises(RuntimeError):
            buffer.make(2, 20)
    assert (buffer.slots, buffer.capacity) == (1, 10)
    assert sizes(buffer) == [(2, 1, 1, 10, 4)] * 2
    buffer.ensure(4, 100)
    assert sizes(buffer) == [(2, 4, 1, 100, 4)] * 2
    assert float(buffer.layers[1].sum()) == 7.0 * 2 * 4


def test_a_smaller_buffer_keeps_what_is_within_it() -> None:
    buffer = SlotBuffer(SHAPE)
    buffer.ensure(3, 10)
    buffer.layers[0][:, 1, :, :4] = 1.0
    buffer.resize(2, 4)
    assert sizes(buffer) == [(2, 2, 1, 4, 4)] * 2
    assert float(buffer.layers[0][:, 1].sum()) == 2 * 4 * 4
    assert float(buffer.layers[0].sum()) == 2 * 4 * 4
