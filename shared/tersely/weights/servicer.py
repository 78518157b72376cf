"""CheckpointService over a SnapshotStore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from tersely.errors import TerselyError, WeightsMismatch, WeightsUnavailable
from tersely.rpc.errors import errors_as_status
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2, checkpoint_pb2_grpc
from tersely.weights.shelf import Delta, DeltaShelf
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore

_FILE_CHUNK_BYTES = 1 << 20

_Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointServicer(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Announces and streams what a store holds; for `GrpcServer` only (grpc.aio).

    A caller that names weights it holds gets a delta against them where the store still has them too and the delta is
    shorter than a full copy.

    Args:
        store: What is served.
        shelf: Where deltas come from; none: its own.
    """

    def __init__(self, store: SnapshotStore, shelf: DeltaShelf | None = None) -> None:
        self._store = store
        self._shelf = shelf or DeltaShelf(store)

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
        """Sends the manifest, then the payload or a delta from the offset on."""
        async with errors_as_status(context):
            snapshot = self._store.get(WeightsLabel.from_proto(request.want))
            manifest = snapshot.manifest
            delta = await self._delta(request, snapshot)
            data = snapshot.payload if delta is None else memoryview(delta.data)
            sha256 = manifest.payload_sha256 if delta is None else delta.sha256
            offset = request.offset_bytes
            if offset > len(data) or (offset and request.payload_sha256 != sha256):
                raise WeightsMismatch(
                    f"Offset {offset} does not belong to what there is of {snapshot.label}.",
                    "Fetch it from the beginning.",
                )
            yield checkpoint_pb2.FetchWeightsResponse(
                offset_bytes=offset,
                payload_bytes=len(data),
                payload_sha256=sha256,
                manifest=manifest,
                base_weights_sha256="" if delta is None else delta.base_weights_sha256,
            )
            while offset < len(data):
                chunk = bytes(data[offset : offset + manifest.chunk_bytes])
                yield checkpoint_pb2.FetchWeightsResponse(
                    offset_bytes=offset, data=chunk, payload_bytes=len(data), payload_sha256=sha256
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

    async def _delta(self, request: checkpoint_pb2.FetchWeightsRequest, want: Snapshot) -> Delta | None:
        """The delta to send; None: send all. A caller that resumes gets what it began with, if that can be had."""
        resumes_full = request.offset_bytes and request.payload_sha256 == want.manifest.payload_sha256
        if resumes_full or not request.base_weights_sha256:
            return None
        return await self._shelf.get(request.base_weights_sha256, want)

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
