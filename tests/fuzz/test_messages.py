"""Messages from other machines: stream entries, weights on their way, log records, tokens."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from google.protobuf.message import DecodeError, Message
from hypothesis import example
from hypothesis import strategies as st

from tersely.errors import TerselyError, WeightsMismatch
from tersely.identity.certificates import read_certificate
from tersely.identity.tokens import JoinToken
from tersely.queue.decisions import _parse as decision_from
from tersely.queue.entries import Lease, issue_number_of, to_lease
from tersely.queue.set_aside import AsideGroup
from tersely.scorer.batch import inputs_of
from tersely.scorer.ring import MalformedGroup, parse_group
from tersely.testing.fuzzing import damaged, deep, dumped, fuzzed, json_objects, refused
from tersely.trainer.checkpoint import list_checkpoints
from tersely.trainer.history import fold, read_log
from tersely.trainer.ring import check_scored_group
from tersely.types import GroupId, WeightsLabel
from tersely.v1 import checkpoint_pb2, common_pb2, group_pb2, log_pb2
from tersely.weights.blocks import Coding, decode_block
from tersely.weights.delta import decode_delta, encode_delta
from tersely.weights.digest import details_sha256, manifest_sha256
from tersely.weights.manifest import check_manifest
from tersely.weights.receive import HeldWeights, PayloadReceiver
from tersely.weights.snapshot import Snapshot

SHA = "ab" * 32
PROMPT = group_pb2.PromptGroup(
    run_id="r",
    group_id="g",
    issue_number=3,
    prompt_id="p",
    purpose=common_pb2.GROUP_PURPOSE_TRAINING,
    prompt_token_ids=[1, 2, 3],
    group_size=2,
    sampling=common_pb2.SamplingSettings(temperature=1.0, max_completion_tokens=4, seed=1),
    stop_token_ids=[2],
    target_tokens=4,
    document="Some text.",
    reference="Text.",
)


def completion(index: int) -> group_pb2.Completion:
    return group_pb2.Completion(
        sample_index=index,
        token_ids=[5, 2],
        behaviour_logprobs=[-0.5, -0.25],
        finish_reason=common_pb2.FINISH_REASON_STOP,
        version_spans=[
            group_pb2.VersionSpan(weights=common_pb2.WeightsLabel(policy_version=1, weights_sha256=SHA), token_count=2)
        ],
        text="Te",
    )


GROUP = group_pb2.CompletionGroup(prompt=PROMPT, completions=[completion(0), completion(1)], rollout_node_id="n")
SCORED = group_pb2.ScoredGroup(
    group=GROUP,
    rewards=[group_pb2.CompletionRewards(rewards=[group_pb2.RewardValue(name="length", value=0.5)]) for _ in range(2)],
)
MESSAGES: dict[str, Message] = {"prompts": PROMPT, "completions": GROUP, "scored": SCORED}
RAW = [message.SerializeToString() for message in MESSAGES.values()]


@fuzzed(
    fields=st.dictionaries(st.sampled_from([b"g", b"p", b"s", b"x", b"y"]), damaged(b"g", b"12", b"-1", *RAW)),
    delivered=st.integers(-1, 1 << 40),
)
@example(fields={b"g": b"\xff", b"p": b""}, delivered=1)
@example(fields={b"g": b"g", b"p": b"", b"s": b"9" * 5000}, delivered=1)
def test_stream_entries(fields: dict[bytes, bytes], delivered: int) -> None:
    lease = to_lease(b"1-0", fields, delivered)
    assert isinstance(lease, Lease | None)
    for stage in ("prompts", "eval_prompts", "completions", "scored", "unknown"):
        assert issue_number_of(stage, fields.get(b"p", b"")) >= 0
        aside = AsideGroup(GroupId("g"), 1, stage, "k", "e", 0.0, payload=fields.get(b"p"))
        assert isinstance(aside.entry(), dict)


@fuzzed(data=damaged(RAW[1]))
def test_completion_groups_at_the_scorer(data: bytes) -> None:
    try:
        group = parse_group(data)
    except MalformedGroup:
        return
    assert len(inputs_of(group)) == group.prompt.group_size
    assert all(sample.token_ids for sample in group.completions)


@fuzzed(data=damaged(RAW[2]))
@example(data=b"")
def test_scored_groups_at_the_trainer(data: bytes) -> None:
    try:
        scored = group_pb2.ScoredGroup.FromString(data)
        check_scored_group(scored)
    except (DecodeError, ValueError):
        return
    for sample, rewards in zip(scored.group.completions, scored.rewards, strict=True):
        assert all(math.isfinite(value) and value < 0.1 for value in sample.behaviour_logprobs)
        assert all(math.isfinite(reward.value) for reward in rewards.rewards)
        assert len(sample.token_ids) == len(sample.behaviour_logprobs) > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_group_with_a_figure_that_is_no_number_is_not_trained_on(value: float) -> None:
    check_scored_group(SCORED)
    logprob, reward = group_pb2.ScoredGroup(), group_pb2.ScoredGroup()
    logprob.CopyFrom(SCORED)
    logprob.group.completions[0].behaviour_logprobs[0] = value
    reward.CopyFrom(SCORED)
    reward.rewards[1].rewards[0].value = value
    for scored in (logprob, reward):
        with pytest.raises(ValueError, match=r"no number|can't be one"):
            check_scored_group(scored)


def frame(payload: bytes) -> bytes:
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


RECORDS = [
    log_pb2.LogRecord(time=1.0, trainer_started=log_pb2.TrainerStarted(run_id="r", incarnation=1)),
    log_pb2.LogRecord(time=2.0, group_issued=log_pb2.GroupIssued(group_id="g", issue_number=0, prompt_id="p")),
    log_pb2.LogRecord(time=3.0, batch_formed=log_pb2.BatchFormed(step=1, groups=[SCORED])),
    log_pb2.LogRecord(
        time=4.0, group_dropped=log_pb2.GroupDropped(group_id="h", outcome=log_pb2.GROUP_OUTCOME_STALE, reason="x")
    ),
]
LOG = [record.SerializeToString() for record in RECORDS]


@fuzzed(payloads=st.lists(damaged(*LOG), max_size=4), raw=damaged(b"".join(map(frame, LOG))), framed=st.booleans())
@example(payloads=[b"\xff\xff\xff"], raw=b"", framed=True)
@example(
    payloads=[b"\x22\x05\x0a\x01g\x10\x63"],  # dropped, with an outcome that is not known
    raw=b"",
    framed=True,
)
def test_write_ahead_logs(tmp_path: Path, payloads: list[bytes], raw: bytes, framed: bool) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(map(frame, payloads)) if framed else raw)
    refused(lambda: read_log(path))


def test_a_log_as_it_should_be_is_folded() -> None:
    assert fold(RECORDS[:3]).last_step == 1


META = {
    "step": 3,
    "policy_version": 3,
    "weights_sha256": SHA,
    "learner": {},
    "tensors_sha256": hashlib.sha256(b"no tensors").hexdigest(),
}


@fuzzed(meta=st.one_of(json_objects(META).map(dumped), damaged(dumped(META))))
@example(meta=b"")
@example(meta=dumped(META))
@example(meta=deep(100_000))
def test_checkpoints(tmp_path: Path, meta: bytes) -> None:
    folder = tmp_path / "step-000003"
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_bytes(meta)
    (folder / "state.safetensors").write_bytes(b"no tensors")
    found = refused(lambda: list_checkpoints(tmp_path))
    if not isinstance(found, TerselyError):
        assert isinstance(refused(found[0].tensors), TerselyError)


def snapshot(version: int, step: float) -> Snapshot:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(64, 32, generator=generator) + step
    return Snapshot.build(
        version,
        {"a": matrix.to(torch.bfloat16), "b": torch.full((40,), step, dtype=torch.float32), "c": torch.zeros(8, 8)},
        run_id="r",
        model_files=(),
        stop_token_ids=(2,),
        chunk_bytes=1024,
        incarnation=1,
    )


BASE, WANT = snapshot(1, 0.0), snapshot(2, 0.01)
DELTA = encode_delta(WANT.manifest.tensors, BASE.payload, WANT.payload, threads=1)
MANIFEST = WANT.manifest.SerializeToString()


@fuzzed(0.5, delta=damaged(DELTA))
@example(delta=DELTA)
def test_deltas(delta: bytes) -> None:
    found = refused(lambda: decode_delta(WANT.manifest, BASE.payload, delta, threads=1))
    assert isinstance(found, TerselyError) or bytes(found) == bytes(WANT.payload)


@fuzzed(data=damaged(MANIFEST))
def test_manifests(data: bytes) -> None:
    try:
        manifest = checkpoint_pb2.WeightsManifest.FromString(data)
    except DecodeError:
        return
    found = refused(lambda: check_manifest(manifest, WANT.label))
    if found is None:
        assert list(manifest.tensors) == list(WANT.manifest.tensors)
        assert manifest.payload_bytes == len(WANT.payload)


@pytest.mark.parametrize("shape", [[1 << 40, 1 << 40], [1 << 47], [(1 << 64) - 1], [2] * 200])
def test_a_manifest_that_promises_more_than_there_is_room_for_is_refused_before_room_is_made(shape: list[int]) -> None:
    manifest = checkpoint_pb2.WeightsManifest()
    manifest.CopyFrom(WANT.manifest)
    del manifest.tensors[:]
    size = min(2 * math.prod(shape), (1 << 64) - 1)
    manifest.tensors.add(name="a", dtype="BF16", shape=shape, length_bytes=size, sha256=SHA)
    manifest.payload_bytes = size
    manifest.weights.weights_sha256 = manifest_sha256(manifest)
    manifest.details_sha256 = details_sha256(manifest)
    head = checkpoint_pb2.FetchWeightsResponse(
        manifest=manifest, payload_bytes=size, payload_sha256=manifest.payload_sha256
    )
    with pytest.raises(WeightsMismatch):
        PayloadReceiver(WeightsLabel.from_proto(manifest.weights)).feed(head)


HEAD = checkpoint_pb2.FetchWeightsResponse(
    manifest=WANT.manifest, payload_bytes=len(WANT.payload), payload_sha256=WANT.manifest.payload_sha256
).SerializeToString()
CHUNKS = [
    checkpoint_pb2.FetchWeightsResponse(
        offset_bytes=at, data=bytes(WANT.payload[at : at + 2048]), payload_sha256=WANT.manifest.payload_sha256
    ).SerializeToString()
    for at in range(0, len(WANT.payload), 2048)
]


@fuzzed(messages=st.lists(damaged(HEAD, *CHUNKS), max_size=2), head=damaged(HEAD), place=st.integers(0, 3))
def test_chunks(messages: list[bytes], head: bytes, place: int) -> None:
    receiver = PayloadReceiver(WANT.label)
    sent = [HEAD, *CHUNKS]
    sent[place:place] = messages
    if place == 0:
        sent[0] = head

    def feed() -> None:
        for data in sent:
            if receiver.complete:
                return
            receiver.feed(checkpoint_pb2.FetchWeightsResponse.FromString(data))

    try:
        refused(feed)
    except DecodeError:
        return
    if receiver.complete:
        assert receiver.held().payload == WANT.payload


@pytest.mark.parametrize("claimed", [1 << 32, 1 << 62])
def test_a_frame_that_claims_gigabytes_is_refused_before_room_is_made(claimed: int) -> None:
    small = zstandard.ZstdCompressor(write_content_size=True).compress(b"\0" * 300)
    bomb = small[:4] + bytes([0xE0]) + struct.pack("<Q", claimed) + small[7:]
    assert zstandard.frame_content_size(bomb) == claimed
    block = bytes([Coding.DENSE, 0]) + struct.pack("<I", 1) + (struct.pack("<I", len(bomb)) + bomb) * 2
    with pytest.raises(ValueError, match="longer than it can be"):
        decode_block(memoryview(block), np.zeros(64, "<u2"))


BASE_HELD = HeldWeights(BASE.label, BASE.manifest, bytearray(BASE.payload))


@fuzzed(
    0.5,
    rank=st.integers(0, 1 << 20),
    scale=st.floats(),
    name=st.sampled_from(["a", "b", "c", "x", ""]),
    data=st.binary(max_size=2048),
    twice=st.booleans(),
)
def test_adapters(rank: int, scale: float, name: str, data: bytes, twice: bool) -> None:
    layer = checkpoint_pb2.AdapterLayer(tensor=name, rank=rank, scale=scale)
    head = checkpoint_pb2.FetchWeightsResponse(
        manifest=WANT.manifest,
        payload_bytes=len(data),
        payload_sha256=hashlib.sha256(data).hexdigest(),
        base_weights_sha256=BASE.label.weights_sha256,
        adapter=checkpoint_pb2.Adapter(layers=[layer] * (1 + twice)),
    )
    receiver = PayloadReceiver(WANT.label, BASE_HELD, accepts_adapter=True)

    def feed() -> None:
        receiver.feed(head)
        receiver.feed(checkpoint_pb2.FetchWeightsResponse(data=data, payload_sha256=head.payload_sha256))

    assert isinstance(refused(feed), WeightsMismatch)
    assert not receiver.complete


TOKEN = JoinToken("rollout", b"f" * 32, b"s" * 32).text


@fuzzed(text=st.one_of(st.text(), damaged(TOKEN.encode()).map(lambda data: data.decode("latin-1"))))
def test_join_tokens(text: str) -> None:
    found = refused(lambda: JoinToken.parse(text))
    if isinstance(found, TerselyError):
        assert len(text) < 40 or text not in found.render()
    else:
        assert len(found.secret) == 32


@fuzzed(
    0.3, data=damaged(b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(bytes(90)) + b"\n-----END CERTIFICATE-----\n")
)
def test_certificates(data: bytes) -> None:
    assert isinstance(refused(lambda: read_certificate(data)), TerselyError)


@fuzzed(value=damaged(b'{"action": "replay", "state": "asked", "time": 1.0, "reason": "r"}'))
@example(value=deep(100_000))
@example(value=b'{"action": "drop", "time": ' + b"9" * 400 + b"}")
def test_decisions_on_groups_set_aside(value: bytes) -> None:
    assert decision_from(GroupId("g"), value).state in ("asked", "refused") or value
