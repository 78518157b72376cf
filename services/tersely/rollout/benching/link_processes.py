"""The other machines of `tersely bench link`, as processes: the line, and workers at its far end.

usage: python -m tersely.rollout.benching.link_processes line|worker, jobs on standard input
"""

from __future__ import annotations

import itertools
import mmap
import sys
import time
from pathlib import Path
from typing import Any

from tersely.rollout.benching.child import serve
from tersely.rollout.engines import Engine, EngineSettings, open_engine
from tersely.rollout.engines.base import stage
from tersely.rollout.fetching import FetchedWeights
from tersely.rollout.verify import check_probe
from tersely.rpc.client import dial
from tersely.testing.shaping import ShapingProxy
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.client import WeightsClient
from tersely.weights.receive import HeldWeights

RUN = "r-bench"
PARTS = ("fetch", "stage", "swap", "probe")
"""What a worker does until it serves; without an engine only the first."""

_PATIENCE_SECONDS = 3600.0


class LineProcess:
    """One line at a time."""

    def __init__(self) -> None:
        self._proxy: ShapingProxy | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job.

        `open` with `target`, `bits_per_second` and `delay_seconds` answers the `address`; `close` how many bytes were
        `sent`.
        """
        if job["do"] == "open":
            self._proxy = ShapingProxy(job["target"], job["bits_per_second"], job["delay_seconds"])
            self._proxy.__enter__()
            return {"address": self._proxy.address}
        assert self._proxy is not None
        self._proxy.__exit__(None, None, None)
        return {"sent": self._proxy.line.sent_bytes}


class WorkerProcess:
    """A worker's receiving half: watch, fetch and check as a worker does, and with an engine also serve."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._client: WeightsClient | None = None
        self._channel: Any = None
        self._held: WeightsLabel | None = None
        self._seen: WeightsLabel | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """`watch`, then `fetch`.

        `watch` takes the `address` and, or None, the `base` held (a payload's file; its manifest lies beside it) and a
        `model_folder` for an engine, and answers when the version announced so far is seen. `fetch` waits for the
        next one and answers when it serves: `at` (monotonic clock of this machine), `bytes`, `delta`, `resumes`, and
        the seconds of the parts: `fetch`, `stage`, `swap`, `probe`.
        """
        return self._watch(job) if job["do"] == "watch" else self._fetch()

    def _watch(self, job: dict[str, Any]) -> dict[str, Any]:
        base = _mapped(Path(job["base"])) if job["base"] is not None else None
        self._channel = dial(job["address"])
        self._client = WeightsClient(self._channel, RUN, "worker")
        if job["model_folder"] is not None and base is not None:
            self._engine = open_engine("torch", EngineSettings("cpu"))
            self._engine.load(Path(job["model_folder"]), base.label, base.tensors())
        if job["holds_base"] and base is not None:
            self._client.take_over(base)
            self._held = base.label
        manifest = self._client.wait_for_version(_PATIENCE_SECONDS)
        assert manifest is not None
        self._seen = WeightsLabel.from_proto(manifest.weights)
        return {}

    def _fetch(self) -> dict[str, Any]:
        client = self._client
        assert client is not None
        manifest = client.wait_for_version(_PATIENCE_SECONDS, self._seen)
        assert manifest is not None
        label = WeightsLabel.from_proto(manifest.weights)
        times = [time.monotonic()]
        held = client.fetch_held(label, self._held)
        times.append(time.monotonic())
        if self._engine is not None:
            weights = held.tensors()
            stage(self._engine, weights)
            times.append(time.monotonic())
            self._engine.swap(label, weights)
            times.append(time.monotonic())
            check_probe(self._engine, FetchedWeights(label, weights, held.manifest, times[1] - times[0]))
            times.append(time.monotonic())
        client.close()
        self._channel.close()
        seconds = [later - earlier for earlier, later in itertools.pairwise(times)]
        return {
            "at": times[-1],
            "bytes": client.counts.payload_bytes,
            "delta": client.counts.deltas == 1,
            "resumes": client.counts.resumes,
            **dict(zip(PARTS, seconds, strict=False)),
        }


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
