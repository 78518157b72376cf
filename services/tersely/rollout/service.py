"""The rollout process: joins a trainer, builds an engine from what the trainer serves, and works until told to stop."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from tersely.errors import ConfigValue, RedisOutOfMemory, RedisUnreachable, TrainerUnreachable, WeightsUnavailable
from tersely.models.cache import cache_folder
from tersely.node.drain import DrainSignal
from tersely.node.heartbeat import Heartbeater
from tersely.node.join import Joined, join
from tersely.node.options import ServiceOptions
from tersely.queue import LeaseKeeper, RunKeys, WorkStream
from tersely.rollout.engines import Capabilities, Engine, EngineSettings, open_engine
from tersely.rollout.engines.base import stage
from tersely.rollout.fetching import WeightsFetcher, WeightsSource
from tersely.rollout.holder import WeightsHolder
from tersely.rollout.leases import LeaseDesk
from tersely.rollout.presence import TrainerPresence
from tersely.rollout.without_model import ShapesOnly, plain_decoder
from tersely.rollout.worker import RolloutWorker
from tersely.telemetry.logging import configure_logging
from tersely.types import RunId
from tersely.v1 import checkpoint_pb2
from tersely.weights.client import WeightsClient

_log = structlog.get_logger(__name__)

TRAINER_PATIENCE_SECONDS = 180.0
"""How long the trainer may be away before the process ends with TrainerUnreachable."""

_REJOIN_PAUSE_SECONDS = 2.0


def run_rollout(options: ServiceOptions) -> int:
    """Runs a rollout worker until SIGTERM or Ctrl-C; then gives its leases back.

    Args:
        options: `trainer` is needed; `engine` and `threads` win over the recipe.

    Returns:
        0 after a drain.

    Raises:
        ConfigValue: No trainer address.
        TrainerUnreachable: No trainer for three minutes.
        TerselyError: What can't get better by waiting, e.g. a wrong Redis password.
    """
    configure_logging("rollout", json=options.log_json)
    if options.trainer is None:
        raise ConfigValue("A rollout worker needs the trainer's address.", "Start it with --trainer HOST:PORT.")
    engines = _Engines(options)
    with DrainSignal() as drain:
        while not drain.is_set():
            try:
                _work_in(join(options.trainer, "rollout", TRAINER_PATIENCE_SECONDS, drain.event), engines, drain.event)
            except (RedisUnreachable, RedisOutOfMemory, WeightsUnavailable) as error:
                if not drain.is_set():
                    _log.warning("joining_again", kind=error.kind, message=error.message)
                    drain.wait(_REJOIN_PAUSE_SECONDS)
            except TrainerUnreachable:
                if not drain.is_set():
                    raise
    _log.info("drained")
    return 0


class _Engines:
    """Keeps one engine across joins, as long as the run stays the same."""

    def __init__(self, options: ServiceOptions) -> None:
        self._options = options
        self._run_id: RunId | None = None
        self._engine: Engine | None = None

    def engine_for(self, joined: Joined) -> Engine:
        if self._engine is None or self._run_id != joined.run_id:
            rollout = joined.recipe.rollout
            settings = EngineSettings(
                device=rollout.device,
                threads=self._options.threads or rollout.threads,
                batch_sequences=rollout.batch_sequences,
                batch_tokens=rollout.batch_tokens,
                lookup_tokens=rollout.lookup_tokens,
            )
            self._engine = None
            self._engine = open_engine(self._options.engine or rollout.engine, settings)
            self._run_id = joined.run_id
            _log.info("engine_opened", **_shown(self._engine))
        return self._engine


def _work_in(joined: Joined, engines: _Engines, stopping: threading.Event) -> None:
    """One stay in a run: from join to drain, or to an error that joining again may cure."""
    recipe, keys = joined.recipe, RunKeys(joined.run_id)
    with ExitStack() as stack:
        stack.enter_context(joined)
        redis_client = joined.connect_redis()
        stack.callback(redis_client.close)
        heartbeat = stack.enter_context(Heartbeater(redis_client, keys, joined.node_id, "rollout"))
        _log.info("joined", run_id=joined.run_id, node_id=joined.node_id, incarnation=joined.incarnation)
        presence = TrainerPresence(joined.channel, joined.address, TRAINER_PATIENCE_SECONDS)
        weights = WeightsClient(joined.channel, joined.run_id, joined.node_id)
        stack.enter_context(_closed_on_drain(weights, stopping))
        streams = [
            WorkStream(
                redis_client,
                key,
                "rollout",
                joined.node_id,
                lease_seconds=recipe.queue.lease_seconds,
                max_strikes=recipe.queue.max_strikes,
                max_expired_leases=recipe.queue.max_expired_leases,
                quarantine_key=keys.quarantine,
                adds_back=joined.login is None,
            )
            for key in (keys.prompts, keys.evaluation_prompts)
        ]
        for stream in streams:
            stream.create()
        manifest = _first_manifest(weights, presence, stopping)
        if manifest is None:
            return
        model_folder = weights.fetch_model_folder(_folder_for(manifest))
        engine = engines.engine_for(joined)
        can = engine.capabilities()
        source, decode = _means_of(can, weights, model_folder)
        fetcher = WeightsFetcher(source, engine.label, stage=partial(stage, engine))
        if recipe.rollout.swap == "inflight" and not can.in_flight:
            _log.warning("swap_in_flight_not_offered", engine=can.name, instead="drain")

        def report(**state: Any) -> None:
            heartbeat.update(delta_fallbacks=weights.delta_fallbacks, **state)

        heartbeat.update(engine=f"{can.name} {can.device} {can.dtype}")
        stack.enter_context(fetcher)
        stack.callback(weights.close)  # before the fetcher ends: a fetch that goes on is called off
        training, evaluations = (
            LeaseDesk(stream, keys.completions, stack.enter_context(LeaseKeeper(stream)), stopping)
            for stream in streams
        )
        RolloutWorker(
            node_id=joined.node_id,
            leases=training,
            evaluations=evaluations,
            holder=WeightsHolder(engine, source, fetcher, model_folder),
            engine=engine,
            decode=decode,
            report=report,
            stopping=stopping,
            swap=recipe.rollout.swap,
            max_staleness=recipe.run.max_staleness,
            check_trainer=presence.check,
        ).run()


def _means_of(
    can: Capabilities, weights: WeightsClient, model_folder: Path
) -> tuple[WeightsSource, Callable[[Sequence[int]], str]]:
    """Where the engine's weights come from, and how its ids become text."""
    if can.dtype == "none":
        return ShapesOnly(weights), plain_decoder(model_folder)
    from tersely.models.tokenizer import PolicyTokenizer

    return weights, PolicyTokenizer.from_folder(model_folder).decode


@contextmanager
def _closed_on_drain(weights: WeightsClient, stopping: threading.Event) -> Iterator[None]:
    """Closes the client at the end of the block, or from a thread when the drain begins: a long fetch is called off."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if stopping.wait(0.2):
                weights.close()
                return

    thread = threading.Thread(target=watch, name="close-on-drain", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        weights.close()


def _first_manifest(
    weights: WeightsClient, presence: TrainerPresence, stopping: threading.Event
) -> checkpoint_pb2.WeightsManifest | None:
    while not stopping.is_set():
        presence.check()
        manifest = weights.wait_for_version(1.0)
        if manifest is not None:
            return manifest
    return None


def _folder_for(manifest: checkpoint_pb2.WeightsManifest) -> Path:
    """A folder named by the contents of the model's files, so that runs and workers may share it."""
    text = "\n".join(f"{file.name} {file.sha256}" for file in manifest.model_files)
    return cache_folder() / "served" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _shown(engine: Engine) -> dict[str, object]:
    can = engine.capabilities()
    return {"engine": can.name, "device": can.device, "dtype": can.dtype, "threads": can.threads}
