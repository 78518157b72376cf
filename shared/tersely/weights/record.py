"""Writes down each version that a run publishes, over its checkpoint channel, as a worker would get it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tersely.errors import TrainerUnreachable
from tersely.rpc.client import dial
from tersely.types import WeightsLabel
from tersely.weights.client import FetchCounts, WeightsClient
from tersely.weights.versions import write_version


def record_versions(
    address: str,
    run_id: str,
    folder: Path,
    last: int,
    *,
    alive: Callable[[], bool],
    progress: Callable[[str], None] = lambda _: None,
) -> FetchCounts:
    """Fetches versions as they are announced and writes them into a folder, up to one.

    A version that is followed by the next before it is fetched is left out; `tersely.weights.measure` then sees two
    that are further apart, and says so.

    Args:
        address: host:port of the trainer.
        run_id: Its run.
        folder: Where to write; is there already.
        last: The version after which it ends.
        alive: Whether the run goes on; asked every two seconds.
        progress: Told of each version.

    Returns:
        What the fetches cost.

    Raises:
        TrainerUnreachable: The run ended before its last version.
        WeightsUnavailable, WeightsMismatch: As of `WeightsClient`.
    """
    channel = dial(address, role="trainer")
    client = WeightsClient(channel, run_id, "recorder")
    held: WeightsLabel | None = None
    try:
        while held is None or held.policy_version < last:
            manifest = client.wait_for_version(2.0, held)
            if manifest is None:
                if not alive():
                    raise TrainerUnreachable(f"The run ended before version {last}.", "See its log.")
                continue
            label = WeightsLabel.from_proto(manifest.weights)
            write_version(folder, label, client.fetch(label, held))
            progress(f"recorded {label}")
            held = label
    finally:
        client.close()
        channel.close()
    return client.counts
