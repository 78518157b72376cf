"""All of `tersely bench link`: from publishing a version to serving it, over a line held to a rate."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersely.errors import ServiceFailed
from tersely.models.locate import locate_model
from tersely.rollout.benching.child import Child
from tersely.rollout.benching.link_processes import PARTS, RUN
from tersely.rollout.benching.origin import commit
from tersely.rollout.engines import Engine, EngineSettings, open_engine
from tersely.rpc.server import GrpcServer
from tersely.weights.probe import Probe, probe_ids
from tersely.weights.receive import HeldWeights
from tersely.weights.servicer import CheckpointServicer
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore
from tersely.weights.versions import find_versions, origin_of, read_version

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str], None]
_COMMAND = [sys.executable, "-m", "tersely.rollout.benching.link_processes"]


@dataclass(frozen=True, slots=True)
class _Case:
    """What all measurements share.

    Attributes:
        first: The version that workers hold, or that was current before they joined.
        second: The version that is published.
        masters: Its weights in fp32, as a learner holds them.
        learner: Says what these make of the probe, in the learner's place.
        base: File with the payload of `first`.
        folder: Config and tokenizer.
        delay_seconds: Of the line, each way.
    """

    first: Snapshot
    second: Snapshot
    masters: Mapping[str, Tensor]
    learner: Engine
    base: Path
    folder: Path
    delay_seconds: float


def run_bench_link(
    *,
    versions: Path,
    rates: Sequence[float],
    workers: Sequence[int],
    model: Path | None,
    full: bool,
    delay_seconds: float = 0.0,
    progress: Progress,
) -> dict[str, Any]:
    """Publishes the second of two versions to workers that hold the first (delta) or nothing (full).

    Args:
        versions: A folder with at least two versions; the first two are used.
        rates: Of the line, Mbit/s.
        workers: How many fetch at once. A single one also puts the weights into a torch engine.
        model: Folder with config and tokenizer; none: the one that the versions' recipe names.
        full: Measure whole copies as well.
        delay_seconds: How long each byte is on its way, each way.
        progress: Told of each measurement.

    Returns:
        `title`, `full_bytes`, `delta_bytes`, `commit`, `delay_ms` and `rows`: `mbit`, `workers`, `coding`, `seconds`
        (from the begin of publishing until the last worker serves) and of that `publish_seconds` (at the trainer: the
        copy in bf16, the probe's forward pass, payload and hashes) and those of the slowest worker per part
        (`fetch_seconds`, and with an engine `stage_seconds`, `swap_seconds`, `probe_seconds`); `line_seconds` (what the
        line alone needs for these bytes), `over_line`, `resumes`, `sent_bytes`.

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
        learner = open_engine("torch", EngineSettings("cpu"))
        learner.load(folder, second.label, _tensors(second))
        masters = {name: tensor.float() for name, tensor in _tensors(second).items()}
        case = _Case(first, second, masters, learner, base, folder, delay_seconds)
        for mbit in rates:
            for coding in ("delta", "full") if full else ("delta",):
                for count in workers:
                    rows.append(_measured(case, mbit, coding, count))
                    progress(f"{mbit:g} Mbit/s, {count} x {coding}: {rows[-1]['seconds']:.2f} s")
    deltas = [row["payload_bytes"] for row in rows if row["coding"] == "delta"]
    return {
        "title": origin.title if origin else versions.name,
        "full_bytes": len(second.payload),
        "delta_bytes": deltas[0],
        "commit": commit(),
        "delay_ms": 1000 * delay_seconds,
        "load_before": round(os.getloadavg()[0], 2),
        "rows": rows,
    }


def _measured(case: _Case, mbit: float, coding: str, count: int) -> dict[str, Any]:
    """One publication, with a server, a line and workers of its own."""
    import torch

    store = SnapshotStore(RUN, case.folder, (), 1 << 20, incarnation=1, keep=2)
    store.publish(case.first.label.policy_version, _tensors(case.first))
    servicer = CheckpointServicer(store)
    server = GrpcServer()
    server.add(servicer.register, servicer.close)
    target = server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        line = stack.enter_context(Child("the line", [*_COMMAND, "line"]))
        opened = line.ask(
            {"do": "open", "target": target, "bits_per_second": mbit * 1e6, "delay_seconds": case.delay_seconds}
        )
        fetchers = [stack.enter_context(Child(f"worker {n}", [*_COMMAND, "worker"])) for n in range(count)]
        with_engine = count == 1
        watch = {
            "do": "watch",
            "address": opened["address"],
            "base": str(case.base) if with_engine or coding == "delta" else None,
            "holds_base": coding == "delta",
            "model_folder": str(case.folder) if with_engine else None,
        }
        for fetcher in fetchers:
            fetcher.tell(watch)
        for fetcher in fetchers:
            fetcher.hear()
            fetcher.tell({"do": "fetch"})
        began = time.monotonic()
        published = {name: master.to(torch.bfloat16) for name, master in case.masters.items()}
        prepared = store.prepare(case.second.label.policy_version, published, probe=_probe(case))
        announced = time.monotonic()
        store.announce(prepared)
        answers = [fetcher.hear() for fetcher in fetchers]
        sent = line.ask({"do": "close"})["sent"]
    if any(answer["delta"] != (coding == "delta") for answer in answers):
        raise ServiceFailed(f"A worker did not get a {coding} copy.", "Use two versions that differ in few values.")
    slowest = max(answers, key=lambda answer: float(answer["at"]))
    seconds = slowest["at"] - began
    payload = slowest["bytes"]
    line_seconds = count * payload * 8 / (mbit * 1e6)
    return {
        "mbit": mbit,
        "workers": count,
        "coding": coding,
        "engine": with_engine,
        "seconds": round(seconds, 3),
        "publish_seconds": round(announced - began, 3),
        **{f"{part}_seconds": round(slowest[part], 3) for part in PARTS if part in slowest},
        "line_seconds": round(line_seconds, 3),
        "over_line": round(seconds / line_seconds, 3),
        "resumes": sum(answer["resumes"] for answer in answers),
        "payload_bytes": payload,
        "sent_bytes": sent,
    }


def _probe(case: _Case) -> Probe:
    """What a learner says of the probe: one forward pass in fp32."""
    config = json.loads((case.folder / "config.json").read_text())
    ids = probe_ids(int(config["vocab_size"]))
    return Probe(ids, case.learner.score(ids))


def _tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    return HeldWeights(snapshot.label, snapshot.manifest, bytearray(snapshot.payload)).tensors()
