"""Keeps the engine on the weights that are asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from tersely.rollout.engines.base import Engine
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2

if TYPE_CHECKING:
    from torch import Tensor

_log = structlog.get_logger(__name__)


class WeightsSource(Protocol):
    """Where weights come from; `tersely.weights.client.WeightsClient` is one."""

    def wait_for_version(
        self, timeout_seconds: float | None, other_than: WeightsLabel | None = None
    ) -> checkpoint_pb2.WeightsManifest | None:
        """Newest manifest, other than the one held; None if there is none in time."""

    def fetch(self, want: WeightsLabel, base: WeightsLabel | None = None) -> dict[str, Tensor]:
        """All tensors of a version, checked; `base` is what is held and may save most of the way."""


class WeightsHolder:
    """Fetches weights and puts them into the engine in place.

    Args:
        engine: Engine to fill; empty, or holding weights of the same model.
        source: Where weights come from.
        model_folder: Folder with the model's config.
    """

    def __init__(self, engine: Engine, source: WeightsSource, model_folder: Path) -> None:
        self._engine = engine
        self._source = source
        self._model_folder = model_folder

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held."""
        return self._engine.label

    @property
    def policy_version(self) -> int:
        """Version held; -1 for none."""
        return -1 if self._engine.label is None else self._engine.label.policy_version

    def newest(self, timeout_seconds: float = 0.0) -> WeightsLabel | None:
        """Newest label announced; None if there was none in time.

        Raises:
            WeightsUnavailable: The trainer at that address serves another run now.
        """
        manifest = self._source.wait_for_version(timeout_seconds)
        return None if manifest is None else WeightsLabel.from_proto(manifest.weights)

    def hold(self, label: WeightsLabel) -> None:
        """Makes exactly these weights the engine's.

        Raises:
            WeightsUnavailable, WeightsMismatch, TrainerUnreachable: They could not be fetched; the old ones are held.
            EngineFailed: They do not fit the model; the old ones are held.
        """
        if self._engine.label == label:
            return
        started = time.monotonic()
        weights = self._source.fetch(label, self._engine.label)
        fetched = time.monotonic()
        if self._engine.label is None:
            self._engine.load(self._model_folder, label, weights)
        else:
            self._engine.swap(label, weights)
        _log.info(
            "weights_held",
            weights=str(label),
            fetch_seconds=round(fetched - started, 3),
            swap_seconds=round(time.monotonic() - fetched, 3),
        )
