"""All of `tersely bench link`: from publishing a version to serving it, over a line held to a rate."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tersely.errors import ServiceFailed
from tersely.models.locate import locate_model
from tersely.rollout.benching.child import Child
from tersely.rollout.benching.link_processes import RUN
from tersely.rollout.benching.origin import commit
from tersely.rpc.server import GrpcServer
from tersely.weights.receive import HeldWeights
from tersely.weights.servicer import CheckpointServicer
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore
from tersely.weights.versions import find_versions, origin_of, read_version

Progress = Callable[[str], None]
_COMMAND = [sys.executable, "-m", "tersely.rollout.benching.link_processes"]


def run_bench_link(
    *,
    versions: Path,
    rates: Sequence[float],
    workers: Sequence[int],
    model: Path | None,
    full: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Publishes the second of two versions to workers that hold the first (delta) or nothing (full).

    Args:
        versions: A folder with at least two versions; the first two are used.
        rates: Of the line, Mbit/s.
        workers: How many fetch at once. A single one also puts the weights into a torch engine.
        model: Folder with config and tokenizer; none: the one that the versions' recipe names.
        full: Measure whole copies as well.
        progress: Told of each measurement.

    Returns:
        `title`, `full_bytes`, `delta_bytes`, `commit` and `rows`: `mbit`, `workers`, `coding`, `seconds` (from the
        begin of publishing until the last worker serves), `prepare_seconds` of it (snapshot and hashes at the trainer),
        `line_seconds` (what the line alone needs for these bytes), `over_line`, `swap_seconds`, `sent_bytes`.

    Raises:
        CheckpointInvalid: There are fewer than two versions.
        ServiceFailed: A process failed, or a worker got another coding than was to be measured.
    """
    first, second = (read_version(path) for path in find_versions(versions)[:2])
    origin = origin_of(find_versions(versions)[0])
    folder = model or locate_model(origin.model if origin else "smollm2-135m")
    rows = []
    with tempfile.TemporaryDirectory(prefix="tersely-link-") as temporary:
        base = Path(temporary) / "base.payload"
        base.write_bytes(first.payload)
        base.with_suffix(".manifest").write_bytes(first.manifest.SerializeToString())
        for mbit in rates:
            for coding in ("delta", "full") if full else ("delta",):
                for count in workers:
                    rows.append(_measured(first, second, base, folder, mbit, coding, count))
                    progress(f"{mbit:g} Mbit/s, {count} x {coding}: {rows[-1]['seconds']:.2f} s")
    deltas = [row["payload_bytes"] for row in rows if row["coding"] == "delta"]
    return {
        "title": origin.title if origin else versions.name,
        "full_bytes": len(second.payload),
        "delta_bytes": deltas[0],
        "commit": commit(),
        "load_before": round(os.getloadavg()[0], 2),
        "rows": rows,
    }


def _measured(
    first: Snapshot, second: Snapshot, base: Path, folder: Path, mbit: float, coding: str, count: int
) -> dict[str, Any]:
    """One publication, with a server, a line and workers of its own."""
    store = SnapshotStore(RUN, folder, (), 1 << 20, incarnation=1, keep=2)
    store.publish(first.label.policy_version, _tensors(first))
    servicer = CheckpointServicer(store)
    server = GrpcServer()
    server.add(servicer.register, servicer.close)
    target = server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        line = stack.enter_context(Child("the line", [*_COMMAND, "line"]))
        address = line.ask({"do": "open", "target": target, "bits_per_second": mbit * 1e6})["address"]
        fetchers = [stack.enter_context(Child(f"worker {n}", [*_COMMAND, "worker"])) for n in range(count)]
        with_engine = count == 1
        watch = {
            "do": "watch",
            "address": address,
            "base": str(base) if with_engine or coding == "delta" else None,
            "holds_base": coding == "delta",
            "model_folder": str(folder) if with_engine else None,
        }
        for fetcher in fetchers:
            fetcher.tell(watch)
        for fetcher in fetchers:
            fetcher.hear()
            fetcher.tell({"do": "fetch"})
        tensors = _tensors(second)
        began = time.monotonic()
        prepared = store.prepare(second.label.policy_version, tensors)
        announced = time.monotonic()
        store.announce(prepared)
        answers = [fetcher.hear() for fetcher in fetchers]
        sent = line.ask({"do": "close"})["sent"]
    if any(answer["delta"] != (coding == "delta") for answer in answers):
        raise ServiceFailed(f"A worker did not get a {coding} copy.", "Use two versions that differ in few values.")
    seconds = max(answer["at"] for answer in answers) - began
    payload = answers[0]["bytes"]
    line_seconds = count * payload * 8 / (mbit * 1e6)
    return {
        "mbit": mbit,
        "workers": count,
        "coding": coding,
        "engine": with_engine,
        "seconds": round(seconds, 3),
        "prepare_seconds": round(announced - began, 3),
        "swap_seconds": round(max(answer["swap_seconds"] for answer in answers), 3),
        "line_seconds": round(line_seconds, 3),
        "over_line": round(seconds / line_seconds, 3),
        "payload_bytes": payload,
        "sent_bytes": sent,
    }


def _tensors(snapshot: Snapshot) -> Any:
    return HeldWeights(snapshot.label, snapshot.manifest, bytearray(snapshot.payload)).tensors()
