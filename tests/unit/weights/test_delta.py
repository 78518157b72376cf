"""Deltas: bit-exact whatever changed, near the entropy of what changed, and refused when damaged."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tersely.errors import WeightsMismatch
from tersely.weights import blocks, delta
from tersely.weights.delta import decode_delta, encode_delta, same_layout
from tersely.weights.gaps import decode_positions, encode_positions
from tersely.weights.snapshot import Snapshot

Bits = NDArray[np.uint16]
SPECIAL = [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7FC1, 0xFFFF, 0x7F81, 0x0001, 0x8001, 0x7F7F, 0xFFC0]


def bf16(bits: Bits) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def snapshot(tensors: dict[str, torch.Tensor], version: int = 0) -> Snapshot:
    return Snapshot.build(
        version, tensors, run_id="r", model_files=(), stop_token_ids=(2,), chunk_bytes=1024, incarnation=1
    )


def encode(base: Snapshot, want: Snapshot) -> bytes:
    return encode_delta(want.manifest.tensors, base.payload, want.payload, threads=2)


def comes_back(base: Snapshot, want: Snapshot) -> bytes:
    written = encode(base, want)
    assert decode_delta(want.manifest, base.payload, written, threads=2) == want.payload
    return written


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two versions of a few tensors: some empty, some float32 at odd places, any share of the values changed."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base: dict[str, torch.Tensor] = {}
    want: dict[str, torch.Tensor] = {}
    for i, size in enumerate(draw(st.lists(st.integers(0, 700), min_size=1, max_size=5))):
        wide = draw(st.booleans())
        old = random.integers(0, 1 << 16, size * (1 + wide), dtype=np.uint16)
        new = old.copy()
        changed = random.random(old.size) < draw(st.sampled_from([0.0, 0.002, 0.05, 0.3, 0.7, 1.0]))
        new[changed] += draw(st.sampled_from([np.uint16(1), np.uint16(0xFFFF), np.uint16(0x8000)]))
        for bits in (old, new):
            at = random.integers(0, max(old.size, 1), draw(st.integers(0, 4)) if old.size else 0)
            bits[at] = random.choice(SPECIAL, at.size)
        name = f"t{i}"
        base[name], want[name] = (bf16(old), bf16(new)) if not wide else (f32(old), f32(new))
    return base, want


def f32(bits: Bits) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int32)).view(torch.float32)


@settings(max_examples=150, deadline=None)
@given(pairs(), st.sampled_from([64, 500, 1 << 22]))
def test_any_change_comes_back_bit_for_bit(
    versions: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], block_items: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "BLOCK_ITEMS", block_items)
        comes_back(snapshot(versions[0]), snapshot(versions[1]))


@pytest.mark.parametrize("bits", SPECIAL)
def test_values_that_floats_confuse_are_told_apart(bits: int) -> None:
    base = np.full(1000, 0x3F80, np.uint16)
    for there in (base, base ^ 0x8000):
        new = there.copy()
        new[::7] = bits
        for old, young in ((there, new), (new, there)):
            comes_back(snapshot({"a": bf16(old)}), snapshot({"a": bf16(young)}))


def test_nothing_changed_takes_next_to_nothing() -> None:
    same = {"a": torch.randn(1000, 100).bfloat16(), "b": torch.zeros(0, 3)}
    assert len(comes_back(snapshot(same), snapshot(same))) < 100


def test_everything_new_takes_no_more_than_a_full_copy() -> None:
    random = np.random.default_rng(0)
    old, new = (bf16(random.integers(0, 1 << 16, 100_000, dtype=np.uint16)) for _ in range(2))
    assert len(comes_back(snapshot({"a": old}), snapshot({"a": new}))) <= 200_000 + 20


def test_empty_weights_have_an_empty_delta() -> None:
    empty = snapshot({"a": torch.zeros(0, dtype=torch.bfloat16)})
    assert len(comes_back(empty, empty)) < 10


def test_a_small_step_of_everything_is_packed_densely() -> None:
    old = np.random.default_rng(0).normal(0, 0.02, 200_000).astype(np.float32)
    base, want = (snapshot({"a": torch.from_numpy(v).bfloat16()}) for v in (old, old * 1.02))
    assert len(comes_back(base, want)) < len(want.payload) / 3


def entropy(counts: NDArray[Any]) -> float:
    """Bits per symbol."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def steps(count: int, rate: float, size: int = 1_500_000) -> list[Bits]:
    """Published bits of fp32 masters that take Adam-like steps: rate times a number near 1, in a lasting direction."""
    random = np.random.default_rng(1)
    masters = random.normal(0, 0.05, size).astype(np.float32)
    direction = random.normal(0, 0.5, size).astype(np.float32)
    versions = []
    for _ in range(count + 1):
        versions.append(torch.from_numpy(masters).bfloat16().view(torch.int16).numpy().view(np.uint16))
        masters = masters - np.float32(rate) * np.clip(
            direction + random.normal(0, 0.3, size).astype(np.float32), -1, 1
        )
    return versions


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-4])
def test_the_size_is_near_the_entropy_of_the_changes(rate: float) -> None:
    old, new = steps(1, rate)
    changed = old != new
    share = changed.mean()
    places = old.size * entropy(np.array([share, 1 - share]))
    values = changed.sum() * entropy(np.bincount(old[changed] ^ new[changed]))
    written = comes_back(snapshot({"a": bf16(old)}), snapshot({"a": bf16(new)}))
    assert 8 * len(written) < 1.15 * (places + values)
    assert len(written) < len(new) * 2 / {1e-6: 100, 1e-5: 20, 1e-4: 4}[rate]


@pytest.mark.parametrize("rate", [1e-6, 1e-5])
def test_one_delta_over_eight_steps_is_smaller_than_the_eight(rate: float) -> None:
    versions = [snapshot({"a": bf16(bits)}, i) for i, bits in enumerate(steps(8, rate, 400_000))]
    singles = sum(len(encode(a, b)) for a, b in itertools.pairwise(versions))
    assert len(comes_back(versions[0], versions[-1])) < 0.6 * singles


def test_positions_of_any_density_come_back() -> None:
    random = np.random.default_rng(2)
    for share in (0.0, 1e-6, 1e-4, 3e-3, 0.1, 0.9, 1.0):
        positions = np.flatnonzero(random.random(300_000) < share)
        for low_bytes in (0, 1, 2):
            quotients, *low = encode_positions(positions, low_bytes)
            assert np.array_equal(decode_positions(quotients, low, 300_000), positions)


def test_positions_beyond_the_end_are_refused() -> None:
    quotients, *low = encode_positions(np.array([5, 1000]), 0)
    with pytest.raises(ValueError, match="beyond"):
        decode_positions(quotients, low, 1000)


def damaged_pair() -> tuple[Snapshot, Snapshot, bytes]:
    old = np.random.default_rng(3).integers(0, 1 << 16, 6000, dtype=np.uint16)
    new = old.copy()
    new[::11] += 1
    new[4000:5000] += 2
    new[5000:] = np.random.default_rng(4).integers(0, 1 << 16, 1000, dtype=np.uint16)
    base, want = (snapshot({"a": bf16(v), "b": torch.ones(3)}) for v in (old, new))
    return base, want, encode(base, want)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "BLOCK_ITEMS", 1000)


@pytest.mark.usefixtures("small_blocks")
def test_a_flipped_bit_anywhere_is_noticed() -> None:
    base, want, good = damaged_pair()
    codings = {
        bytes(block[:1])[0] for block in delta._split(memoryview(good), list(delta._spans(want.manifest.tensors)))
    }
    assert codings == set(blocks.Coding)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        try:
            # A bit that means nothing, like one of the count beside an unchanged block, may do no harm.
            assert decode_delta(want.manifest, base.payload, bad, threads=1) == want.payload
        except WeightsMismatch:
            continue


@pytest.mark.usefixtures("small_blocks")
def test_a_delta_cut_off_or_with_more_behind_it_is_refused() -> None:
    base, want, good = damaged_pair()
    for at in [math.floor(len(good) * i / 40) for i in range(40)]:
        with pytest.raises(WeightsMismatch):
            decode_delta(want.manifest, base.payload, good[:at], threads=1)
    with pytest.raises(WeightsMismatch):
        decode_delta(want.manifest, base.payload, good + b"\0", threads=1)


def test_a_stream_that_claims_to_be_huge_is_refused_before_it_is_unpacked() -> None:
    import zstandard

    old = np.zeros(5000, np.uint16)
    new = old.copy()
    new[::50] = 1
    base, want = (snapshot({"a": bf16(bits)}) for bits in (old, new))
    good = encode(base, want)
    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    bad = good[:4] + good[4:10] + len(bomb).to_bytes(4, "little") + bomb + (0).to_bytes(4, "little") * 2
    with pytest.raises(WeightsMismatch, match="longer than it can be"):
        decode_delta(want.manifest, base.payload, bad, threads=1)


def test_a_delta_against_other_weights_is_noticed() -> None:
    base, want, good = damaged_pair()
    other = bytearray(base.payload)
    other[100] ^= 4
    with pytest.raises(WeightsMismatch, match="wrong hash"):
        decode_delta(want.manifest, other, good, threads=1)


def test_layouts_differ_by_name_dtype_and_shape() -> None:
    ones = torch.ones(2, 3, dtype=torch.bfloat16)
    first = snapshot({"a": ones}).manifest
    assert same_layout(first, snapshot({"a": 2 * ones}, version=4).manifest)
    for other in ({"b": ones}, {"a": ones.float()}, {"a": ones.reshape(3, 2)}, {"a": ones, "b": ones}):
        assert not same_layout(first, snapshot(other).manifest)
