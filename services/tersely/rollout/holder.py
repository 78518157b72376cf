"""Keeps the engine on the weights that are asked for."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from tersely.errors import EngineFailed, TerselyError
from tersely.rollout.engines.base import Engine
from tersely.rollout.fetching import WeightsFetcher, WeightsSource
from tersely.rollout.verify import check_probe
from tersely.types import WeightsLabel

_log = structlog.get_logger(__name__)


class WeightsHolder:
    """Puts fetched weights into the engine between two steps, and proves that they are what it samples from.

    Args:
        engine: Engine to fill; empty, or holding weights of the same model.
        source: Where the newest label is announced.
        fetcher: Has the weights themselves; running.
        model_folder: Folder with the model's config.
    """

    def __init__(self, engine: Engine, source: WeightsSource, fetcher: WeightsFetcher, model_folder: Path) -> None:
        self._engine = engine
        self._source = source
        self._fetcher = fetcher
        self._model_folder = model_folder
        self.swap_pause_seconds = 0.0
        self.swaps = 0
        self.unproved = 0

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held."""
        return self._engine.label

    @property
    def policy_version(self) -> int:
        """Version held; -1 for none."""
        return -1 if self._engine.label is None else self._engine.label.policy_version

    @property
    def last_error(self) -> str:
        """Why the last fetch that failed did, else how many versions were held without proof; empty: neither."""
        if self._fetcher.last_error or not self.unproved:
            return self._fetcher.last_error
        return f"{self.unproved} versions held that no probe proves to be what the engine samples from"

    def newest(self, timeout_seconds: float = 0.0) -> WeightsLabel | None:
        """Newest label announced; None if there was none in time.

        Raises:
            WeightsUnavailable: The trainer at that address serves another run now.
        """
        manifest = self._source.wait_for_version(timeout_seconds)
        return None if manifest is None else WeightsLabel.from_proto(manifest.weights)

    def due(self, required: WeightsLabel | None) -> bool:
        """Whether other weights than those held are here and `apply` would put them in.

        Args:
            required: Version that is needed next, fetched if need be; None: any newer one will do.

        Raises:
            WeightsUnavailable, WeightsMismatch, TrainerUnreachable: The version required can't be had.
        """
        self._fetcher.want(None if required == self.label else required)
        ready = self._fetcher.ready
        if ready is None or ready == self.label:
            return False
        if required is not None:
            return ready == required
        # One that was wanted for a group which is gone by now is no news.
        return ready.policy_version > self.policy_version or ready == self.newest()

    def wait(self, timeout_seconds: float) -> None:
        """Waits until weights have come, or for so long."""
        self._fetcher.wait(timeout_seconds)

    def apply(self) -> None:
        """Makes the weights that are here the engine's; no step may run meanwhile, and that time is the swap's pause.

        Raises:
            EngineFailed: They do not fit the model; the old ones are held.
            WeightsNotApplied: The engine took them and still samples from others.
        """
        fetched = self._fetcher.take()
        if fetched is None or fetched.label == self.label:
            return
        began = time.monotonic()
        try:
            if self._engine.label is None:
                self._engine.load(self._model_folder, fetched.label, fetched.weights)
            else:
                self._engine.swap(fetched.label, fetched.weights)
        except TerselyError:
            self._fetcher.forget()
            raise
        except Exception as error:
            self._fetcher.forget()  # Or who requires just these would wait for them for ever.
            # Libraries raise what they like; to the worker it is one thing, with its traceback in the log.
            _log.exception("weights_not_held", weights=str(fetched.label))
            raise EngineFailed(
                f"{self._engine.capabilities().name} can't hold {fetched.label}: {type(error).__name__}: {error}",
                "See the worker's log; another --engine may run this model.",
            ) from error
        swapped = time.monotonic()
        difference = check_probe(self._engine, fetched)
        ended = time.monotonic()
        if self.swaps:
            self.swap_pause_seconds = ended - began
        self.swaps += 1
        if difference is None and self._engine.capabilities().dtype != "none":
            self.unproved += 1
            _log.warning("weights_not_proved", weights=str(fetched.label), unproved=self.unproved)
        _log.info(
            "weights_held",
            weights=str(fetched.label),
            fetch_seconds=round(fetched.fetch_seconds, 3),
            swap_seconds=round(swapped - began, 3),
            probe_seconds=round(ended - swapped, 3),
            swap_pause_seconds=round(ended - began, 3),
            probe_difference=difference,
            running=self._engine.running,
        )
