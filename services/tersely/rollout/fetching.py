"""Weights on their way in, while the engine generates: a thread and a second buffer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import structlog

from tersely.errors import EngineFailed, TerselyError
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2

if TYPE_CHECKING:
    from torch import Tensor

_LOOK_SECONDS = 0.1
"""How soon the thread notices that a particular version is wanted while it waits for a newer one."""

_log = structlog.get_logger(__name__)


class WeightsSource(Protocol):
    """Where weights come from; `tersely.weights.client.WeightsClient` is one."""

    def wait_for_version(
        self, timeout_seconds: float | None, other_than: WeightsLabel | None = None
    ) -> checkpoint_pb2.WeightsManifest | None:
        """Newest manifest, other than the one held; None if there is none in time."""

    def fetch(self, want: WeightsLabel, base: WeightsLabel | None = None) -> Mapping[str, Tensor]:
        """All tensors of a version, checked; `base` is what is held and may save most of the way."""

    def manifest(self, label: WeightsLabel) -> checkpoint_pb2.WeightsManifest | None:
        """Manifest of a version that was fetched or announced last; None: it is not known any more."""


@dataclass(frozen=True, slots=True)
class FetchedWeights:
    """A version that is here, whole and checked.

    Attributes:
        label: Version and hash.
        weights: Name to tensor; not to be changed, the next delta is against these bytes.
        manifest: Where it is known: what the trainer said about the version.
        fetch_seconds: From asking to having it.
    """

    label: WeightsLabel
    weights: Mapping[str, Tensor]
    manifest: checkpoint_pb2.WeightsManifest | None
    fetch_seconds: float


class WeightsFetcher:
    """Fetches each newest version by itself, or a particular one while that is wanted; keeps the last one it fetched.

    Args:
        source: Where weights come from; this thread alone fetches from it.
        held: What the engine holds already.
        pause_seconds: Pause after a fetch that failed.
        stage: Prepares the engine for what was fetched, while it works.
    """

    def __init__(
        self,
        source: WeightsSource,
        held: WeightsLabel | None = None,
        pause_seconds: float = 0.5,
        stage: Callable[[Mapping[str, Tensor]], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._stage = stage
        self._pause_seconds = pause_seconds
        self._changed = threading.Condition()
        self._want: WeightsLabel | None = None
        self._ready: FetchedWeights | None = None
        self._refused: TerselyError | None = None
        self._broken: Exception | None = None
        self._last = held
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_error = ""

    @property
    def ready(self) -> WeightsLabel | None:
        """Label of what is here and was not taken."""
        with self._changed:
            return None if self._ready is None else self._ready.label

    def want(self, label: WeightsLabel | None) -> None:
        """Asks for a particular version from now on; None: for the newest.

        Raises:
            WeightsUnavailable, WeightsMismatch, TrainerUnreachable: The fetch of the version wanted ended so; it is not
                tried again before it is asked for again.
            EngineFailed: The thread ended on an error that nobody foresaw; nothing is fetched any more.
        """
        with self._changed:
            if self._broken is not None:
                raise EngineFailed(
                    f"Weights can't be fetched any more: {type(self._broken).__name__}: {self._broken}",
                    "Restart the worker; if it stays, report it with the worker's log.",
                ) from self._broken
            refused, self._refused = self._refused, None
            if refused is not None and self._want == label:
                self._want = None
                raise refused
            self._want = label

    def take(self) -> FetchedWeights | None:
        """What is here, once."""
        with self._changed:
            taken, self._ready = self._ready, None
            return taken

    def forget(self) -> None:
        """Forgets which version came last: the next one is fetched whole, even if it is the same."""
        with self._changed:
            self._last = None

    def wait(self, timeout_seconds: float) -> None:
        """Waits until something came or was refused, or for so long."""
        with self._changed:
            if self._ready is None and self._refused is None:
                self._changed.wait(timeout_seconds)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="fetch-weights", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - raised again in the worker's thread by `want`
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                want, done = self._want, self._refused is not None or self._want == self._last
            if want is not None and done:
                self._stopping.wait(0.005)  # Until it was taken: the newest must not take its place.
                continue
            label = want or self._newest()
            if label is not None:
                self._fetch(label, wanted=label == want)

    def _newest(self) -> WeightsLabel | None:
        try:
            manifest = self._source.wait_for_version(_LOOK_SECONDS, self._last)
        except TerselyError as error:
            # The worker's own look at the newest version meets the same refusal and ends the stay.
            self.last_error = str(error)
            self._stopping.wait(self._pause_seconds)
            return None
        label = None if manifest is None else WeightsLabel.from_proto(manifest.weights)
        if label is None or label == self._last:
            self._stopping.wait(0.01)  # a closed source does not wait
            return None
        return label

    def _fetch(self, label: WeightsLabel, *, wanted: bool) -> None:
        started = time.monotonic()
        try:
            weights = self._source.fetch(label, self._last)
        except TerselyError as error:
            if self._stopping.is_set():
                return
            self.last_error = str(error)
            _log.warning("weights_not_fetched", weights=str(label), kind=error.kind, message=error.message)
            with self._changed:
                if wanted and self._want == label:
                    self._refused = error
                    self._changed.notify_all()
            self._stopping.wait(self._pause_seconds)
            return
        fetched = FetchedWeights(label, weights, self._source.manifest(label), time.monotonic() - started)
        try:
            self._stage(weights)
        except Exception as error:  # noqa: BLE001 - staging only saves time; what is wrong the swap says again
            _log.warning("weights_not_staged", weights=str(label), error=f"{type(error).__name__}: {error}")
        with self._changed:
            self._last, self._ready = label, fetched
            self._changed.notify_all()
