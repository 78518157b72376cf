"""The versions that a trainer holds ready for its workers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersely.errors import TrainerUnreachable, WeightsUnavailable
from tersely.types import WeightsLabel
from tersely.weights.adapter import AdapterLayer
from tersely.weights.model_files import ModelFile, read_model_files
from tersely.weights.probe import Probe
from tersely.weights.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor


class SnapshotStore:
    """Keeps the newest snapshots and the pinned ones, one payload each. Thread-safe.

    Args:
        run_id: Run of the trainer.
        model_folder: Folder with config and tokenizer, read once, here.
        stop_token_ids: Ids that end a completion.
        chunk_bytes: Bytes per chunk sent; at most 3 MiB, for gRPC's limit of 4 MiB.
        incarnation: Incarnation of the trainer.
        keep: Newest snapshots to keep, >= 1: a worker gets a delta if it holds one of them. While one is published, one
            more exists.
        keep_bytes: Keep fewer where their payloads would take more than this; the current one always stays.

    Raises:
        ModelInvalid: A file of the model folder is too large, or can't be read.
    """

    def __init__(
        self,
        run_id: str,
        model_folder: Path,
        stop_token_ids: Sequence[int],
        chunk_bytes: int,
        incarnation: int,
        keep: int = 3,
        keep_bytes: int | None = None,
    ) -> None:
        if keep < 1 or not 0 < chunk_bytes <= 3 << 20:
            raise ValueError(f"keep = {keep}, chunk_bytes = {chunk_bytes}")
        self.run_id = run_id
        self.model_files: dict[str, ModelFile] = {file.name: file for file in read_model_files(model_folder)}
        self._stop_token_ids = tuple(stop_token_ids)
        self._chunk_bytes = chunk_bytes
        self._incarnation = incarnation
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        # In order of publication, the current one last.
        self._held: dict[WeightsLabel, Snapshot] = {}
        self._pins: Counter[WeightsLabel] = Counter()
        self._listeners: list[Callable[[], None]] = []
        self._adapter_base: Snapshot | None = None
        self._closed = False
        self.restoring = False
        """While True, weights not held are not lost: the trainer is going back to where its run stood."""

    @property
    def current(self) -> Snapshot | None:
        """The snapshot published last; None before the first."""
        with self._lock:
            return next(reversed(self._held.values()), None)

    @property
    def closed(self) -> bool:
        """Whether watchers should end."""
        with self._lock:
            return self._closed

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> WeightsLabel:
        """Makes weights the current version and tells the watchers; they never hold this call up.

        Args:
            version: Policy version, >= 0.
            tensors: Name to CPU tensor, bfloat16 or float32; copied.

        Returns:
            Version and hash.

        Raises:
            ValueError: There is no tensor, or one of another dtype or device.
        """
        return self.announce(self.prepare(version, tensors))

    def prepare(
        self,
        version: int,
        tensors: Mapping[str, Tensor],
        *,
        probe: Probe | None = None,
        adapter: Sequence[AdapterLayer] | None = None,
    ) -> Snapshot:
        """Makes a snapshot that nobody is told of yet, so that its label can be put on disk first.

        Args:
            version: Policy version, >= 0.
            tensors: Name to CPU tensor, bfloat16 or float32; copied.
            probe: How to see that an engine computes with these weights.
            adapter: What makes them out of the weights given to `keep_adapter_base`; without those of no use.

        Raises:
            ValueError: There is no tensor, or one of another dtype or device.
        """
        return Snapshot.build(
            version,
            tensors,
            run_id=self.run_id,
            model_files=tuple(self.model_files.values()),
            stop_token_ids=self._stop_token_ids,
            chunk_bytes=self._chunk_bytes,
            incarnation=self._incarnation,
            probe=probe,
            adapter=adapter,
            adapter_base=self._adapter_base.label if self._adapter_base is not None else None,
        )

    def keep_adapter_base(self, base: Snapshot) -> None:
        """Keeps weights for good, which all those prepared from now on are adapters to; tells nobody."""
        with self._lock:
            self._adapter_base = base

    @property
    def adapter_base(self) -> Snapshot | None:
        """What was given to `keep_adapter_base`."""
        return self._adapter_base

    def announce(self, snapshot: Snapshot) -> WeightsLabel:
        """Makes a prepared snapshot the current version and tells the watchers."""
        with self._lock:
            self._held.pop(snapshot.label, None)
            self._held[snapshot.label] = snapshot
            self._drop_old()
        self._notify()
        return snapshot.label

    def get(self, label: WeightsLabel) -> Snapshot:
        """The snapshot with this version and hash.

        Raises:
            WeightsUnavailable: It is not held (any more), or was never made.
            TrainerUnreachable: It is not held, but the trainer is still restoring its run.
        """
        with self._lock:
            return self._find(label)

    def find(self, weights_sha256: str) -> Snapshot | None:
        """The newest snapshot with this hash, whatever its version; None if there is none."""
        with self._lock:
            found = (s for s in reversed(self._held.values()) if s.label.weights_sha256 == weights_sha256)
            base = self._adapter_base
            kept = base if base is not None and base.label.weights_sha256 == weights_sha256 else None
            return next(found, kept)

    def holds(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is one of those held."""
        with self._lock:
            return snapshot is self._adapter_base or self._held.get(snapshot.label) is snapshot

    def hold(self, snapshot: Snapshot) -> None:
        """Keeps a prepared snapshot that is not to become the current one, with one pin; tells nobody."""
        with self._lock:
            self._held = {snapshot.label: snapshot} | self._held  # the current one stays last
            self._pins[snapshot.label] += 1

    def pin(self, label: WeightsLabel) -> None:
        """Keeps a snapshot until it is unpinned as often as it was pinned.

        Raises:
            WeightsUnavailable: It is not held.
        """
        with self._lock:
            self._find(label)
            self._pins[label] += 1

    def unpin(self, label: WeightsLabel) -> None:
        """Takes back one pin; a label without pins is left alone."""
        with self._lock:
            if self._pins[label] <= 1:
                del self._pins[label]
            else:
                self._pins[label] -= 1
            self._drop_old()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Has a function called after each publication and at closing, on the publishing thread; it must not block.

        Returns:
            A function that ends the subscription.
        """
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def close(self) -> None:
        """Ends all watches; snapshots can still be fetched."""
        with self._lock:
            self._closed = True
        self._notify()

    def _find(self, label: WeightsLabel) -> Snapshot:
        snapshot = self._held.get(label)
        if snapshot is None and self._adapter_base is not None and label == self._adapter_base.label:
            return self._adapter_base
        if snapshot is None and self.restoring:
            raise TrainerUnreachable(f"The trainer is still restoring its run; it may yet hold weights {label}.")
        if snapshot is None:
            held = ", ".join(map(str, self._held)) or "none"
            raise WeightsUnavailable(
                f"The trainer does not hold weights {label}; it holds {held}.",
                "Take the current version; a group that needs these weights is issued again by the trainer.",
            )
        return snapshot

    def _notify(self) -> None:
        # Under the lock, so that a listener is never called once its unsubscribe() has returned.
        with self._lock:
            for listener in self._listeners:
                listener()

    def _drop_old(self) -> None:
        newest: set[WeightsLabel] = set()
        total = 0
        for label, snapshot in reversed(self._held.items()):
            total += len(snapshot.payload)
            if newest and self._keep_bytes is not None and total > self._keep_bytes:
                break
            newest.add(label)
            if len(newest) == self._keep:
                break
        for label in [label for label in self._held if label not in newest and label not in self._pins]:
            del self._held[label]
