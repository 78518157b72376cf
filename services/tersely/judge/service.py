"""`tersely judge`: JudgeService and `judge` jobs in front of one endpoint; without one healthy, and clear about it."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

import structlog

from tersely.config.load import load_recipe
from tersely.config.schema import Recipe
from tersely.errors import JudgeNotConfigured, TrainerUnreachable
from tersely.judge.servicer import NO_ENDPOINT, JudgeServicer, UnconfiguredJudge
from tersely.node.drain import DrainSignal
from tersely.node.heartbeat import Heartbeater
from tersely.node.join import Joined, join
from tersely.node.options import ServiceOptions
from tersely.queue import RunKeys, connect, password_from
from tersely.rpc.server import GrpcServer
from tersely.telemetry.logging import configure_logging
from tersely.v1 import judge_pb2, judge_pb2_grpc

log = structlog.get_logger(__name__)

JUDGE_SERVICE = judge_pb2.DESCRIPTOR.services_by_name["JudgeService"].full_name
GRACE_SECONDS = 2.0


def run_judge(options: ServiceOptions) -> int:
    """Runs until SIGTERM or SIGINT; calls in hand get two seconds to end.

    Without an endpoint the health of the process (service "") is SERVING and that of `tersely.v1.JudgeService`
    NOT_SERVING: a health check of a container asks for the first, a client for the second.

    Raises:
        PackageMissing: An endpoint is set, and DeepEval is not installed.
        TerselyError: A setting, the cache, trainer, queue or port, each in its own class.
    """
    configure_logging("judge", json=options.log_json)
    with DrainSignal() as drain, ExitStack() as stack:
        joined: Joined | None = None
        if options.trainer is not None:
            try:
                joined = stack.enter_context(join(options.trainer, "judge", stop=drain.event))
            except TrainerUnreachable:
                if drain.is_set():
                    return 0
                raise
        recipe = _recipe(options, joined)
        if recipe.judge.endpoint is None:
            _wait_without_endpoint(recipe, joined, options, drain, stack)
        else:
            _serve(recipe, joined, options, drain, stack)
    log.info("ended")
    return 0


def _serve(
    recipe: Recipe, joined: Joined | None, options: ServiceOptions, drain: DrainSignal, stack: ExitStack
) -> None:
    # The client library and what it brings are loaded by a judge that has somebody to ask.
    from tersely.judge.judging import Judge

    judge = Judge(recipe.judge)
    stack.callback(judge.close)
    heart = _heart(joined, stack)
    counted = threading.Lock()
    total = 0

    def on_judged(count: int) -> None:
        nonlocal total
        with counted:
            total += count
            judged = total
        log.info("judged", summaries=judged, **judge.counts())
        if heart is not None:
            heart.update(state="working", detail=f"{judged} summaries judged", groups_finished=judged)

    servicer = JudgeServicer(judge, on_judged)
    server = GrpcServer(recipe.judge.host, recipe.judge.port, recipe.rpc.insecure_lan, role="judge")
    server.add(lambda grpc_server: judge_pb2_grpc.add_JudgeServiceServicer_to_server(servicer, grpc_server))
    server.start()
    stack.callback(server.stop, GRACE_SECONDS)
    if heart is not None:
        heart.update(state="idle", detail=f"judges with {recipe.judge.endpoint}")
    log.info("ready", address=server.address, endpoint=recipe.judge.endpoint, model=recipe.judge.model)
    if options.redis_url is None:
        drain.wait()
        return
    # RQ is a package of its own, and JudgeService does without.
    from tersely.jobs import JobWorker
    from tersely.judge.jobs import QUEUE, JudgeHandler

    password = password_from(recipe.queue, os.environ)
    with connect(options.redis_url, username=recipe.queue.username, password=password) as client:
        JobWorker(client, {QUEUE: JudgeHandler(judge)}).run(drain.event)


def _wait_without_endpoint(
    recipe: Recipe, joined: Joined | None, options: ServiceOptions, drain: DrainSignal, stack: ExitStack
) -> None:
    if options.redis_url is not None:
        raise JudgeNotConfigured(
            "A judge that takes jobs needs an endpoint, and none is set.", "Set judge.endpoint (docs/judge.md)."
        )
    server = GrpcServer(
        recipe.judge.host, recipe.judge.port, recipe.rpc.insecure_lan, not_serving=(JUDGE_SERVICE,), role="judge"
    )
    server.add(lambda grpc_server: judge_pb2_grpc.add_JudgeServiceServicer_to_server(UnconfiguredJudge(), grpc_server))
    server.start()
    stack.callback(server.stop, 0.0)
    heart = _heart(joined, stack)
    if heart is not None:
        heart.update(state="idle", detail=NO_ENDPOINT)
    log.info("ready", address=server.address, state=NO_ENDPOINT)
    drain.wait()


def _heart(joined: Joined | None, stack: ExitStack) -> Heartbeater | None:
    if joined is None:
        return None
    client = stack.enter_context(joined.connect_redis())
    return stack.enter_context(Heartbeater(client, RunKeys(joined.run_id), joined.node_id, "judge"))


def _recipe(options: ServiceOptions, joined: Joined | None) -> Recipe:
    """Settings of this process: its own where it was given any, else the run's."""
    if joined is None or options.recipe is not None or options.overrides:
        return load_recipe(options.recipe, options.overrides).recipe
    return joined.recipe
