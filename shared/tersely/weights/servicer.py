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
from tersely.weights.store import SnapshotStore

_FILE_CHUNK_BYTES = 1 << 20

_Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointServicer(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Announces and streams what a store holds; for `GrpcServer` only (grpc.aio).

    Full weights only: `base_weights_sha256` is accepted and has no effect yet, so a client may always send it.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    def register(self, server: grpc.aio.Server) -> None:
        """Adds itself to a server: ``server.add(servicer.register, servicer.close)``."""
        checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(self, server)

    def close(self) -> None:
        """Ends the watches, which have no end of their own."""
        self._store.close()

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
        """Sends the manifest, then the payload from the offset on."""
        async with errors_as_status(context):
            snapshot = self._store.get(WeightsLabel.from_proto(request.want))
            manifest = snapshot.manifest
            offset = request.offset_bytes
            if offset > manifest.payload_bytes or (offset and request.payload_sha256 != manifest.payload_sha256):
                raise WeightsMismatch(
                    f"Offset {offset} does not belong to the payload of {snapshot.label}.",
                    "Fetch it from the beginning.",
                )
            head = checkpoint_pb2.FetchWeightsResponse(
                offset_bytes=offset,
                payload_bytes=manifest.payload_bytes,
                payload_sha256=manifest.payload_sha256,
                manifest=manifest,
            )
            yield head
            while offset < manifest.payload_bytes:
                data = bytes(snapshot.payload[offset : offset + manifest.chunk_bytes])
                yield checkpoint_pb2.FetchWeightsResponse(
                    offset_bytes=offset,
                    data=data,
                    payload_bytes=manifest.payload_bytes,
                    payload_sha256=manifest.payload_sha256,
                )
                offset += len(data)

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
