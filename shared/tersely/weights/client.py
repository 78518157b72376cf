"""A worker's side of the checkpoint channel."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
import structlog

from tersely.errors import TerselyError, TrainerUnreachable, WeightsMismatch, WeightsUnavailable
from tersely.rpc.errors import BROKEN, code_and_details, from_rpc_error
from tersely.telemetry.atomic import write_atomic
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2, checkpoint_pb2_grpc
from tersely.weights.model_files import MOST_BYTES, check_name
from tersely.weights.receive import HeldWeights, PayloadReceiver
from tersely.weights.streams import Watched
from tersely.weights.watch import VersionWatch

if TYPE_CHECKING:
    from torch import Tensor

_Message = TypeVar("_Message")

_MOST_WRONG_MERGES = 3
"""Adapters in a row that came whole and made the wrong hash here, after which none is asked for any more. One value in
10^12 rounds otherwise on another machine, so that one now and then is no sign of anything."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a broken stream is taken up again.

    Attributes:
        attempts: Broken streams in a row, without one new byte, before giving up.
        first_pause_seconds: Pause after the first; doubles each time, with jitter.
        longest_pause_seconds: Longest pause.
        stall_seconds: Longest wait for the next message of a stream; a stream may last as long as it gets on.
    """

    attempts: int = 8
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 5.0
    stall_seconds: float = 300.0


@dataclass(slots=True)
class FetchCounts:
    """What the fetches of a client cost so far.

    Attributes:
        payload_bytes: Bytes of payloads and deltas received, those fetched again included.
        resumes: Streams that broke and were taken up again.
        mismatches: Payloads whose hashes were wrong.
        deltas: Versions that came as a delta.
        full_copies: Versions that came whole.
        delta_fallbacks: Deltas that were of no use, so that a full copy was fetched.
        adapters: Versions that came as an adapter.
        adapter_fallbacks: Adapters that were of no use: damaged on the way, or whose merge had the wrong hash here.
    """

    payload_bytes: int = 0
    resumes: int = 0
    mismatches: int = 0
    deltas: int = 0
    full_copies: int = 0
    delta_fallbacks: int = 0
    adapters: int = 0
    adapter_fallbacks: int = 0


class WeightsClient:
    """Watches versions and fetches weights and model files over one channel, which the caller closes afterwards.

    It keeps the bytes of the version fetched last, against which the next one may come as a delta, or in a LoRA run
    those of the base, to which all are adapters. One thread fetches.

    Args:
        channel: Channel to the trainer.
        run_id: Run that the trainer must serve.
        node_id: Node that asks.
        retry: When to go on after a broken stream.
    """

    def __init__(self, channel: grpc.Channel, run_id: str, node_id: str, retry: RetryPolicy | None = None) -> None:
        self._stub = checkpoint_pb2_grpc.CheckpointServiceStub(channel)
        self._node_id = node_id
        self._retry = retry or RetryPolicy()
        self._watch = VersionWatch(self._stub, run_id, node_id)
        self._closing = threading.Event()
        self._calls: set[grpc.Call] = set()
        self._lock = threading.Lock()
        self._held: HeldWeights | None = None
        self._root: HeldWeights | None = None
        self._use_adapters = True
        self._wrong_merges = 0
        self._last_manifest: checkpoint_pb2.WeightsManifest | None = None
        self.counts = FetchCounts()

    def start_watching(self) -> None:
        """Starts the thread that follows the announced versions, once."""
        self._watch.start()

    @property
    def latest(self) -> checkpoint_pb2.WeightsManifest | None:
        """Newest manifest announced since `start_watching`; None before the first."""
        return self._watch.latest

    def wait_for_version(
        self, timeout_seconds: float | None, other_than: WeightsLabel | None = None
    ) -> checkpoint_pb2.WeightsManifest | None:
        """Waits until a version (other than the one held) is announced; starts watching if need be.

        Args:
            timeout_seconds: Most seconds to wait; None: for ever (until `close`).
            other_than: Version the caller already holds.

        Returns:
            The newest manifest, or None if there was none in time.

        Raises:
            WeightsUnavailable: The trainer at this address serves another run.
        """
        self._watch.start()
        return self._watch.wait(timeout_seconds, other_than)

    def fetch(self, want: WeightsLabel, base: WeightsLabel | None = None) -> dict[str, Tensor]:
        """Fetches one version as tensors; see `fetch_held`.

        Returns:
            Name to CPU tensor, bfloat16 or float32 as published; tied tensors once. They share one buffer, which is the
            base of the next delta: whoever changes them pays with a full copy.
        """
        return self.fetch_held(want, base, adapters=True).tensors()

    def fetch_held(
        self, want: WeightsLabel, base: WeightsLabel | None = None, *, adapters: bool = False
    ) -> HeldWeights:
        """Fetches one version, whole and checked.

        A broken stream is resumed from the byte that is here. If an adapter was damaged on the way, it is fetched once
        more; if it or a delta is of no use, all is fetched; if the hash of a full copy is wrong, it is fetched again.

        Args:
            want: Version and hash.
            base: What the caller holds; where it is what was fetched last, the trainer may send a delta against it.
            adapters: Whether an adapter may be merged into its base, which is then fetched first and kept; by PyTorch.

        Returns:
            Bytes and layout; no tensor is made.

        Raises:
            WeightsUnavailable: The trainer doesn't hold these weights.
            WeightsMismatch: The hashes of a full copy were wrong twice.
            TrainerUnreachable: The stream kept breaking without any progress, or `close` was called.
        """
        root = self._adapter_base(want) if adapters else None
        if root is None and (
            base is None or self._held is None or self._held.label.weights_sha256 != base.weights_sha256
        ):
            self._held = None  # let go before there is another
        ways: list[tuple[HeldWeights | None, bool]] = [(None, False), (None, False)]
        if root is not None:
            self._held = None
            ways = [(root, True), (root, True), (root, False), *ways]
        elif self._held is not None:
            ways = [(self._held, False), *ways]
        wrong_merge = False
        for number, (against, adapter) in enumerate(ways, 1):
            if adapter and wrong_merge:
                continue
            receiver = PayloadReceiver(want, against, accepts_adapter=adapter)
            if against is None:
                self._held = None
            try:
                self._receive(want, receiver)
                break
            except WeightsMismatch as error:
                last, wrong_merge = number == len(ways), wrong_merge or receiver.wrong_merge
                self._mismatched(receiver, error, retry=not last)
                if last:
                    raise
        self.counts.deltas += receiver.is_delta
        self.counts.adapters += receiver.is_adapter
        self.counts.full_copies += not (receiver.is_delta or receiver.is_adapter)
        if receiver.is_adapter:
            self._wrong_merges = 0
        held = receiver.held()
        self._last_manifest = held.manifest
        # In an adapter run the base stays instead: it is what the next version is made of.
        self._held = held if self._root is None else None
        return held

    def _adapter_base(self, want: WeightsLabel) -> HeldWeights | None:
        """The weights that a version is an adapter to, fetched if need be; None: there are none, or they don't help."""
        latest = self._watch.latest
        if not self._use_adapters or latest is None or not latest.HasField("adapter_base"):
            return None
        label = WeightsLabel.from_proto(latest.adapter_base)
        if self._root is not None and self._root.label.weights_sha256 == label.weights_sha256:
            return self._root if want.weights_sha256 != label.weights_sha256 else None
        if self._held is None or self._held.label.weights_sha256 != label.weights_sha256:
            if want.weights_sha256 == label.weights_sha256:
                return None
            self._root = None  # else the fetch below would not keep what it gets
            try:
                self.fetch_held(label, self._held.label if self._held is not None else None)
            except WeightsUnavailable as error:
                _log.warning("adapter_base_not_fetched", weights=str(label), message=error.message)
                return None
        self._root, self._held = self._held, None
        return self._root

    def _mismatched(self, receiver: PayloadReceiver, error: WeightsMismatch, *, retry: bool) -> None:
        self.counts.mismatches += 1
        self.counts.delta_fallbacks += receiver.is_delta
        self.counts.adapter_fallbacks += receiver.is_adapter
        self._wrong_merges += receiver.wrong_merge
        if self._wrong_merges >= _MOST_WRONG_MERGES and self._use_adapters:
            # This machine rounds in another way, and would in every version.
            self._use_adapters, self._root = False, None
            _log.warning("adapters_given_up", wrong_merges=self._wrong_merges)
        _log.warning(
            "weights_mismatch",
            message=error.message,
            delta=receiver.is_delta,
            adapter=receiver.is_adapter,
            retry=retry,
        )

    def take_over(self, held: HeldWeights) -> None:
        """Has weights that are here already for the base of the next delta.

        Args:
            held: Whole and checked by the caller; not to be changed any more.
        """
        self._held, self._root = held, None

    def manifest(self, label: WeightsLabel) -> checkpoint_pb2.WeightsManifest | None:
        """Manifest of the version fetched last, or of the newest announced; None for any other."""
        last, latest = self._last_manifest, self._watch.latest
        if last is not None and WeightsLabel.from_proto(last.weights) == label:
            return last
        return latest if latest is not None and WeightsLabel.from_proto(latest.weights) == label else None

    @property
    def delta_fallbacks(self) -> int:
        """Deltas that were of no use, so that a full copy was fetched."""
        return self.counts.delta_fallbacks

    def fetch_model_folder(self, into: Path, timeout_seconds: float = 60.0) -> Path:
        """Fetches config and tokenizer files; those already there with the right hash stay.

        Args:
            into: Folder, made if missing; each file is written atomically.
            timeout_seconds: Most seconds to wait for the trainer's first version.

        Returns:
            `into`.

        Raises:
            ModelInvalid: The trainer offers a file that is no config or tokenizer file.
            WeightsMismatch: A file had the wrong hash twice.
            TrainerUnreachable: No version was announced in time, or the stream kept breaking.
        """
        manifest = self.wait_for_version(timeout_seconds)
        if manifest is None:
            raise TrainerUnreachable(
                f"The trainer announced no weights within {timeout_seconds:.0f} s.", "See the trainer's log."
            )
        for file in manifest.model_files:
            check_name(file.name)
        into.mkdir(parents=True, exist_ok=True)
        for file in manifest.model_files:
            path = into / file.name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256:
                continue
            write_atomic(path, self._fetch_file(file))
        return into

    def close(self) -> None:
        """Ends the watch and any fetch in progress."""
        self._closing.set()
        with self._lock:
            for call in self._calls:
                call.cancel()
        self._watch.stop()

    def _receive(self, want: WeightsLabel, receiver: PayloadReceiver) -> None:
        attempt = 0
        while not receiver.complete:
            before = receiver.received_bytes
            request = checkpoint_pb2.FetchWeightsRequest(
                want=want.to_proto(),
                base_weights_sha256=receiver.base_weights_sha256,
                offset_bytes=receiver.received_bytes,
                payload_sha256=receiver.payload_sha256,
                node_id=self._node_id,
                accepts_adapter=receiver.accepts_adapter,
            )
            error: grpc.RpcError | None = None
            try:
                with self._stream(self._stub.FetchWeights(request)) as stream:
                    for message in stream:
                        receiver.feed(message)
                        self.counts.payload_bytes += len(message.data)
            except grpc.RpcError as broken:
                error = broken
            if receiver.complete:
                break
            attempt = 1 if receiver.received_bytes > before else attempt + 1
            self._pause(error, attempt, f"weights {want}")
            self.counts.resumes += 1
            _log.info("fetch_resumed", weights=str(want), offset_bytes=receiver.received_bytes, attempt=attempt)

    def _fetch_file(self, file: checkpoint_pb2.ModelFile) -> bytes:
        if file.length_bytes > MOST_BYTES:
            raise WeightsMismatch(
                f"Model file {file.name} is said to have {file.length_bytes} bytes.", "Check the trainer."
            )
        attempt = mismatches = 0
        data = bytearray()
        while True:
            request = checkpoint_pb2.FetchModelFileRequest(name=file.name, sha256=file.sha256, offset_bytes=len(data))
            before = len(data)
            error: grpc.RpcError | None = None
            try:
                with self._stream(self._stub.FetchModelFile(request)) as stream:
                    for message in stream:
                        data += message.data
                        if len(data) > file.length_bytes:
                            break
            except grpc.RpcError as broken:
                error = broken
            if len(data) >= file.length_bytes:
                if hashlib.sha256(data).hexdigest() == file.sha256:
                    return bytes(data)
                mismatches += 1
                if mismatches == 2:
                    raise WeightsMismatch(f"Model file {file.name} has the wrong hash.", "Check both machines.")
                data.clear()
                continue
            attempt = 1 if len(data) > before else attempt + 1
            self._pause(error, attempt, file.name)

    @contextmanager
    def _stream(self, call: grpc._CallIterator[_Message]) -> Iterator[Watched[_Message]]:
        """Keeps a call where `close` can cancel it, and cancels it if it stalls or its reader leaves early."""
        with self._lock:
            self._calls.add(call)
            if self._closing.is_set():
                call.cancel()
        watched = Watched(call, self._retry.stall_seconds)
        try:
            yield watched
        finally:
            watched.close()
            call.cancel()
            with self._lock:
                self._calls.discard(call)

    def _pause(self, error: grpc.RpcError | None, attempt: int, what: str) -> None:
        """Waits before the next attempt; raises where another would not help."""
        if self._closing.is_set():
            raise TrainerUnreachable(f"The fetch of {what} was called off.", "")
        if error is not None:
            code, _ = code_and_details(error)
            failure: TerselyError = from_rpc_error(error, "the trainer")
            if isinstance(failure, (WeightsUnavailable, WeightsMismatch)) or code not in BROKEN:
                raise failure
            if attempt >= self._retry.attempts:
                raise failure
        elif attempt >= self._retry.attempts:
            raise TrainerUnreachable(f"The trainer ends each stream of {what} too early.", "See the trainer's log.")
        longest = min(self._retry.first_pause_seconds * 2 ** (attempt - 1), self._retry.longest_pause_seconds)
        self._closing.wait(longest * random.uniform(0.5, 1.0))
