"""Follows the versions that a trainer announces."""

from __future__ import annotations

import threading
import time

import grpc
import structlog

from tersely.errors import TerselyError
from tersely.rpc.errors import code_and_details, sent_error
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2, checkpoint_pb2_grpc
from tersely.weights.digest import details_sha256

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_log = structlog.get_logger(__name__)


class VersionWatch:
    """A thread that always knows the newest manifest; reconnects for as long as it takes.

    Args:
        stub: Stub of CheckpointService.
        run_id: Run that the trainer must serve; empty for any.
        node_id: Node that asks.
        stream_seconds: Deadline of one watch stream, after which the next begins.
    """

    def __init__(
        self,
        stub: checkpoint_pb2_grpc.CheckpointServiceStub,
        run_id: str,
        node_id: str,
        stream_seconds: float = 300.0,
    ) -> None:
        self._stub = stub
        self._request = checkpoint_pb2.WatchVersionsRequest(run_id=run_id, node_id=node_id)
        self._stream_seconds = stream_seconds
        self._changed = threading.Condition()
        self._latest: checkpoint_pb2.WeightsManifest | None = None
        self._failure: TerselyError | None = None
        self._stopping = threading.Event()
        self._stream: grpc._CallIterator[checkpoint_pb2.WatchVersionsResponse] | None = None
        self._thread: threading.Thread | None = None

    @property
    def latest(self) -> checkpoint_pb2.WeightsManifest | None:
        """Newest manifest announced; None before the first."""
        with self._changed:
            return self._latest

    def start(self) -> None:
        """Starts the thread, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch-versions", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread and wakes those who wait."""
        with self._changed:
            self._stopping.set()
            if self._stream is not None:
                self._stream.cancel()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wait(
        self, timeout_seconds: float | None, other_than: WeightsLabel | None = None
    ) -> checkpoint_pb2.WeightsManifest | None:
        """Waits for a version.

        Args:
            timeout_seconds: Most seconds to wait; None: for ever.
            other_than: Version the caller already holds.

        Returns:
            The newest manifest, or None if there was none (or none other) in time or the watch was stopped.

        Raises:
            TerselyError: The trainer refused, e.g. because it serves another run.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                if self._failure is not None:
                    # A copy: raising one exception object from two threads would mix their tracebacks.
                    raise type(self._failure)(self._failure.message, self._failure.way_out)
                if self._latest is not None and WeightsLabel.from_proto(self._latest.weights) != other_than:
                    return self._latest
                left = None if deadline is None else deadline - time.monotonic()
                if self._stopping.is_set() or (left is not None and left <= 0):
                    return None
                self._changed.wait(left)

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                with self._changed:
                    if self._stopping.is_set():
                        return
                    self._stream = self._stub.WatchVersions(
                        self._request, timeout=self._stream_seconds, wait_for_ready=True
                    )
                for response in self._stream:
                    if details_sha256(response.manifest) != response.manifest.details_sha256:
                        _log.warning(
                            "damaged_manifest_ignored", policy_version=response.manifest.weights.policy_version
                        )
                        self._stream.cancel()
                        break  # the next stream begins with the same one
                    self._announce(response.manifest)
                    pause = _FIRST_PAUSE_SECONDS
            except grpc.RpcError as error:
                sent = sent_error(error)
                if sent is not None:
                    self._fail(sent)
                    return
                code, details = code_and_details(error)
                if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    continue
                if not self._stopping.is_set():
                    _log.info("watch_broken", code=code.name, details=details, retry_seconds=pause)
            except ValueError:
                # The channel was closed under us: nothing more will come.
                _log.info("watch_ended", reason="channel closed")
                return
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _announce(self, manifest: checkpoint_pb2.WeightsManifest) -> None:
        with self._changed:
            if self._latest is not None and manifest.trainer_incarnation < self._latest.trainer_incarnation:
                _log.warning("old_trainer_ignored", incarnation=manifest.trainer_incarnation)
                return
            self._latest = manifest
            self._changed.notify_all()

    def _fail(self, error: TerselyError) -> None:
        _log.error("watch_refused", error=error.kind, message=error.message)
        with self._changed:
            self._failure = error
            self._changed.notify_all()
