"""The other machines of `tersely bench link`, as processes: the line, and workers at its far end.

usage: python -m tersely.rollout.benching.link_processes line|worker, jobs on standard input
"""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path
from typing import Any

from tersely.rollout.benching.child import serve
from tersely.rollout.engines import Engine, EngineSettings, open_engine
from tersely.rpc.client import dial
from tersely.testing.shaping import ShapingProxy
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2, checkpoint_pb2_grpc
from tersely.weights.client import WeightsClient
from tersely.weights.receive import HeldWeights, PayloadReceiver

RUN = "r-bench"
_PATIENCE_SECONDS = 3600.0


class LineProcess:
    """One line at a time."""

    def __init__(self) -> None:
        self._proxy: ShapingProxy | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """`open` with `target` and `bits_per_second` answers the `address`; `close` how many bytes were `sent`."""
        if job["do"] == "open":
            self._proxy = ShapingProxy(job["target"], job["bits_per_second"])
            self._proxy.__enter__()
            return {"address": self._proxy.address}
        assert self._proxy is not None
        self._proxy.__exit__(None, None, None)
        return {"sent": self._proxy.line.sent_bytes}


class WorkerProcess:
    """A worker's receiving half: watch, fetch, check, and with an engine also swap."""

    def __init__(self) -> None:
        self._base: HeldWeights | None = None
        self._engine: Engine | None = None
        self._client: WeightsClient | None = None
        self._channel: Any = None
        self._seen: WeightsLabel | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """`watch`, then `fetch`.

        `watch` takes the `address` and, or None, the `base` held (a payload's file; its manifest lies beside it) and a
        `model_folder` for an engine, and answers when the version announced so far is seen. `fetch` waits for the
        next one and answers when it serves: `at` (monotonic clock of this machine), `bytes`, `delta`, `swap_seconds`.
        """
        return self._watch(job) if job["do"] == "watch" else self._fetch()

    def _watch(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["base"] is not None:
            self._base = _mapped(Path(job["base"]))
        if job["model_folder"] is not None and self._base is not None:
            self._engine = open_engine("torch", EngineSettings("cpu"))
            self._engine.load(Path(job["model_folder"]), self._base.label, self._base.tensors())
        if not job["holds_base"]:
            self._base = None
        self._channel = dial(job["address"])
        self._client = WeightsClient(self._channel, RUN, "worker")
        manifest = self._client.wait_for_version(_PATIENCE_SECONDS)
        assert manifest is not None
        self._seen = WeightsLabel.from_proto(manifest.weights)
        return {}

    def _fetch(self) -> dict[str, Any]:
        assert self._client is not None
        manifest = self._client.wait_for_version(_PATIENCE_SECONDS, self._seen)
        assert manifest is not None
        receiver = PayloadReceiver(WeightsLabel.from_proto(manifest.weights), self._base)
        request = checkpoint_pb2.FetchWeightsRequest(
            want=manifest.weights, base_weights_sha256=receiver.base_weights_sha256, node_id="worker"
        )
        for message in checkpoint_pb2_grpc.CheckpointServiceStub(self._channel).FetchWeights(request):
            receiver.feed(message)
        held = receiver.held()
        checked = time.monotonic()
        if self._engine is not None:
            self._engine.swap(held.label, held.tensors())
        at = time.monotonic()
        self._client.close()
        self._channel.close()
        return {"at": at, "swap_seconds": at - checked, "bytes": receiver.received_bytes, "delta": receiver.is_delta}


def _mapped(payload: Path) -> HeldWeights:
    """Weights in a file that all workers here map: as many machines would have as many copies."""
    manifest = checkpoint_pb2.WeightsManifest.FromString(payload.with_suffix(".manifest").read_bytes())
    with payload.open("r+b") as file:
        bytes_ = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    held: Any = HeldWeights(WeightsLabel.from_proto(manifest.weights), manifest, bytes_)  # type: ignore[arg-type]
    return held  # type: ignore[no-any-return]


def main() -> None:
    """Answers jobs until there are no more."""
    serve(LineProcess().run if sys.argv[1] == "line" else WorkerProcess().run)


if __name__ == "__main__":
    main()
