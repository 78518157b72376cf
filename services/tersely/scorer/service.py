"""`tersely scorer`: in a run with `--trainer`, at a job queue with `--redis-url`, else a ScoringService for anyone."""

from __future__ import annotations

import os

import structlog

from tersely.config.load import load_recipe
from tersely.errors import RedisUnreachable, TrainerUnreachable
from tersely.node.drain import DrainSignal
from tersely.node.heartbeat import Heartbeater
from tersely.node.join import join
from tersely.node.options import ServiceOptions
from tersely.queue import LeaseKeeper, RunKeys, WorkStream, connect, password_from
from tersely.rpc.server import GrpcServer
from tersely.scorer.registry import build_rewards, evaluation_rewards
from tersely.scorer.ring import RingScorer
from tersely.scorer.scoring_service import ScoringServicer
from tersely.scorer.trainer_watch import TrainerWatch
from tersely.telemetry.logging import configure_logging
from tersely.v1 import scoring_pb2_grpc

REJOIN_PAUSE_SECONDS = 2.0

log = structlog.get_logger(__name__)


def run_scorer(options: ServiceOptions) -> int:
    """Runs until SIGTERM or SIGINT; the group, batch or call in hand is finished first.

    Raises:
        RewardUnknown, RewardFailed, ConfigValue: The rewards can't be set up; nothing was leased.
        TerselyError: Trainer, queue or port, each in its own class.
    """
    configure_logging("scorer", json=options.log_json)
    with DrainSignal() as drain:
        if options.redis_url is not None:
            _work_on_jobs(options, options.redis_url, drain)
        elif options.trainer is None:
            _serve(options, drain)
        else:
            # A trainer that has begun another run is joined again.
            while not drain.is_set():
                try:
                    _work_in_run(options.trainer, drain)
                except RedisUnreachable as error:
                    if drain.is_set():
                        break
                    log.warning("joining_again", kind=error.kind, message=error.message)
                    drain.wait(REJOIN_PAUSE_SECONDS)
    log.info("ended")
    return 0


def _serve(options: ServiceOptions, drain: DrainSignal) -> None:
    recipe = load_recipe(options.recipe, options.overrides).recipe
    servicer = ScoringServicer(build_rewards(recipe.rewards))
    server = GrpcServer(recipe.scorer.host, recipe.scorer.port, recipe.rpc.insecure_lan, role="scorer")
    server.add(lambda grpc_server: scoring_pb2_grpc.add_ScoringServiceServicer_to_server(servicer, grpc_server))
    with server:
        log.info("ready", address=server.address, rewards=list(recipe.rewards))
        drain.wait()


def _work_on_jobs(options: ServiceOptions, url: str, drain: DrainSignal) -> None:
    """Takes `score` jobs; rewards are set up as the jobs ask for them."""
    # RQ is a package of its own, and a scorer in a run does without.
    from tersely.jobs import JobWorker
    from tersely.scorer.jobs.work import QUEUE, ScoreHandler

    recipe = load_recipe(options.recipe, options.overrides).recipe
    with connect(url, username=recipe.queue.username, password=password_from(recipe.queue, os.environ)) as client:
        JobWorker(client, {QUEUE: ScoreHandler()}).run(drain.event)


def _work_in_run(trainer: str, drain: DrainSignal) -> None:
    try:
        joined = join(trainer, "scorer", stop=drain.event)
    except TrainerUnreachable:
        if drain.is_set():
            return
        raise
    with joined:
        rewards = build_rewards(joined.recipe.rewards)
        evaluation = evaluation_rewards(rewards)
        queue, keys = joined.recipe.queue, RunKeys(joined.run_id)
        client = joined.connect_redis()
        stream = WorkStream(
            client,
            keys.completions,
            "scorer",
            joined.node_id,
            lease_seconds=queue.lease_seconds,
            max_strikes=queue.max_strikes,
            max_expired_leases=queue.max_expired_leases,
            quarantine_key=keys.quarantine,
            adds_back=joined.login is None,
        )
        with client, Heartbeater(client, keys, joined.node_id, "scorer") as heart, LeaseKeeper(stream) as keeper:

            def report(state: str, detail: str) -> None:
                heart.update(
                    state=state,
                    detail=detail,
                    groups_finished=worker.groups_finished,
                    leases=keeper.count,
                    last_error=worker.last_error,
                )

            worker = RingScorer(
                stream,
                keeper,
                keys.scored,
                joined.node_id,
                rewards=rewards,
                evaluation=evaluation,
                report=report,
                same_run=TrainerWatch(joined.channel, trainer, joined.run_id).same_run,
            )
            log.info("ready", run_id=joined.run_id, node_id=joined.node_id, rewards=[r.name for r in rewards])
            worker.run(drain.event)
