"""CheckpointService over a SnapshotStore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc

from tersely.errors import TerselyError, WeightsMismatch, WeightsUnavailable
from tersely.rpc.errors import errors_as_status
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2, checkpoint_pb2_grpc
from tersely.weights.readers import Readers
from tersely.weights.shelf import DeltaShelf
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore

_FILE_CHUNK_BYTES = 1 << 20
_SMALL_SHARE = 0.01
"""An adapter below this share of a full copy is sent without making a delta to compare it with."""

_Context = grpc.aio.ServicerContext[Any, Any]


class _Sent(NamedTuple):
    """What a caller gets.

    Attributes:
        data: All of it.
        sha256: Its name.
        base_weights_sha256: What it is against; empty: nothing, it is a full payload.
        adapter: Layout, if it is an adapter.
    """

    data: memoryview
    sha256: str
    base_weights_sha256: str = ""
    adapter: checkpoint_pb2.Adapter | None = None


class CheckpointServicer(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Announces and streams what a store holds; for `GrpcServer` only (grpc.aio).

    A caller that names weights it holds gets a delta against them where the store still has them too, or an adapter if
    they are its base, whichever is shorter; a full copy where neither is.

    Args:
        store: What is served.
        shelf: Where deltas come from; none: its own.
        stall_seconds: Longest time that a reader may take for one chunk.
    """

    def __init__(self, store: SnapshotStore, shelf: DeltaShelf | None = None, stall_seconds: float = 60.0) -> None:
        self._store = store
        self._shelf = shelf or DeltaShelf(store)
        self._readers = Readers(store.holds, stall_seconds)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds itself to a server: ``server.add(servicer.register, servicer.close)``."""
        checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(self, server)

    def close(self) -> None:
        """Ends the watches, which have no end of their own, and makes no more deltas."""
        self._store.close()
        self._shelf.close()

    async def WatchVersions(  # noqa: N802 - gRPC's name
        self, request: checkpoint_pb2.WatchVersionsRequest, context: _Context
    ) -> AsyncIterator[checkpoint_pb2.WatchVersionsResponse]:
        """Sends the current manifest at once, then newer ones; versions published while a send waits are skipped."""
        async with errors_as_status(context):
            self._check_run(request.run_id)
            loop = asyncio.get_running_loop()
            changed = asyncio.Event()
            unsubscribe = self._store.subscribe(lambda: _wake(loop, changed))
            try:
                sent = None
                while not self._store.closed:
                    changed.clear()
                    current = self._store.current
                    if current is not None and current is not sent:
                        yield checkpoint_pb2.WatchVersionsResponse(manifest=current.manifest)
                        sent = current
                    else:
                        await changed.wait()
            finally:
                unsubscribe()

    async def FetchWeights(  # noqa: N802 - gRPC's name
        self, request: checkpoint_pb2.FetchWeightsRequest, context: _Context
    ) -> AsyncIterator[checkpoint_pb2.FetchWeightsResponse]:
        """Sends the manifest, then the payload, a delta or an adapter from the offset on."""
        async with errors_as_status(context):
            snapshot = self._find(request)
            # Who waits for a delta holds the version too, and counts.
            with self._readers.reading(request.node_id, snapshot, context) as moved:
                sent = await self._choose(request, snapshot)
                data, offset, chunk_bytes = sent.data, request.offset_bytes, snapshot.manifest.chunk_bytes
                if offset > len(data) or (offset and request.payload_sha256 != sent.sha256):
                    raise WeightsMismatch(
                        f"Offset {offset} does not belong to what there is of {snapshot.label}.",
                        "Fetch it from the beginning.",
                    )
                yield checkpoint_pb2.FetchWeightsResponse(
                    offset_bytes=offset,
                    payload_bytes=len(data),
                    payload_sha256=sent.sha256,
                    manifest=snapshot.manifest,
                    base_weights_sha256=sent.base_weights_sha256,
                    adapter=sent.adapter,
                )
                while offset < len(data):
                    moved()
                    chunk = bytes(data[offset : offset + chunk_bytes])
                    yield checkpoint_pb2.FetchWeightsResponse(
                        offset_bytes=offset, data=chunk, payload_bytes=len(data), payload_sha256=sent.sha256
                    )
                    offset += len(chunk)

    async def FetchModelFile(  # noqa: N802 - gRPC's name
        self, request: checkpoint_pb2.FetchModelFileRequest, context: _Context
    ) -> AsyncIterator[checkpoint_pb2.FetchModelFileResponse]:
        """Sends one config or tokenizer file; only names in the manifest exist."""
        async with errors_as_status(context):
            file = self._store.model_files.get(request.name)
            if file is None or request.sha256 != file.sha256:
                raise WeightsUnavailable(
                    f"The trainer has no model file {request.name[:80]!r} with that hash.", "Read the current manifest."
                )
            offset = request.offset_bytes
            while offset < len(file.data):
                data = file.data[offset : offset + _FILE_CHUNK_BYTES]
                yield checkpoint_pb2.FetchModelFileResponse(offset_bytes=offset, data=data)
                offset += len(data)

    async def _choose(self, request: checkpoint_pb2.FetchWeightsRequest, want: Snapshot) -> _Sent:
        """The shortest of what the caller can use. One that resumes gets what it began with, if that can be had."""
        full = _Sent(want.payload, want.manifest.payload_sha256)
        begun = request.payload_sha256 if request.offset_bytes else ""
        base = request.base_weights_sha256
        if not base or begun == full.sha256:
            return full
        adapter = None
        if request.accepts_adapter and want.adapter is not None and base == want.manifest.adapter_base.weights_sha256:
            packed = want.adapter
            adapter = _Sent(memoryview(packed.data), packed.sha256, base, packed.layout)
            if begun == adapter.sha256 or len(adapter.data) <= _SMALL_SHARE * len(full.data):
                return adapter
        delta = await self._shelf.get(base, want)
        if delta is None:
            return adapter if adapter is not None and len(adapter.data) < len(full.data) else full
        if adapter is not None and len(adapter.data) <= len(delta.data) and begun != delta.sha256:
            return adapter
        return _Sent(memoryview(delta.data), delta.sha256, base)

    def _find(self, request: checkpoint_pb2.FetchWeightsRequest) -> Snapshot:
        """What is held, or what this node has begun to read.

        Raises:
            WeightsUnavailable: It is neither.
        """
        label = WeightsLabel.from_proto(request.want)
        try:
            return self._store.get(label)
        except WeightsUnavailable:
            begun = self._readers.find(request.node_id, label)
            if begun is None:
                raise
            return begun

    def _check_run(self, run_id: str) -> None:
        if run_id and run_id != self._store.run_id:
            raise wrong_run(run_id, self._store.run_id)


def wrong_run(wanted: str, served: str) -> TerselyError:
    """The trainer at this address now serves another run than the worker joined."""
    return WeightsUnavailable(
        f"This trainer serves run {served}, not {wanted}.",
        "Start the worker again, so that it joins the run of this trainer.",
    )


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)
