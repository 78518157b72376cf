"""`tersely judge`: healthy, reachable, and clear about having nothing to judge with."""

from __future__ import annotations

from contextlib import ExitStack

import structlog

from tersely.config.load import load_recipe
from tersely.config.schema import Recipe
from tersely.errors import ConfigValue, TrainerUnreachable
from tersely.judge.servicer import NO_ENDPOINT, UnconfiguredJudge
from tersely.node.drain import DrainSignal
from tersely.node.heartbeat import Heartbeater
from tersely.node.join import Joined, join
from tersely.node.options import ServiceOptions
from tersely.queue import RunKeys
from tersely.rpc.server import GrpcServer
from tersely.telemetry.logging import configure_logging
from tersely.v1 import judge_pb2, judge_pb2_grpc

log = structlog.get_logger(__name__)

JUDGE_SERVICE = judge_pb2.DESCRIPTOR.services_by_name["JudgeService"].full_name


def run_judge(options: ServiceOptions) -> int:
    """Runs until SIGTERM or SIGINT and then ends at once.

    The health of the process (service "") is SERVING, that of `tersely.v1.JudgeService` NOT_SERVING: a health check of
    a container asks for the first, a client for the second.

    Raises:
        ConfigValue: An endpoint is configured, which this version can't use.
        TerselyError: Trainer, queue or port, each in its own class.
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
        _refuse_endpoint(recipe)
        server = GrpcServer(recipe.judge.host, recipe.judge.port, recipe.rpc.insecure_lan, not_serving=(JUDGE_SERVICE,))
        server.add(
            lambda grpc_server: judge_pb2_grpc.add_JudgeServiceServicer_to_server(UnconfiguredJudge(), grpc_server)
        )
        server.start()
        stack.callback(server.stop, 0.0)
        if joined is not None:
            client = stack.enter_context(joined.connect_redis())
            heart = stack.enter_context(Heartbeater(client, RunKeys(joined.run_id), joined.node_id, "judge"))
            heart.update(state="idle", detail=NO_ENDPOINT)
        log.info("ready", address=server.address, state=NO_ENDPOINT)
        drain.wait()
    log.info("ended")
    return 0


def _recipe(options: ServiceOptions, joined: Joined | None) -> Recipe:
    """Settings of this process: its own where it was given any, else the run's."""
    if joined is None or options.recipe is not None or options.overrides:
        return load_recipe(options.recipe, options.overrides).recipe
    return joined.recipe


def _refuse_endpoint(recipe: Recipe) -> None:
    if recipe.judge.endpoint is not None:
        raise ConfigValue(
            "judge.endpoint is set, but this version can't judge with an endpoint yet.",
            "Remove judge.endpoint, or leave the judge out (judge.enabled = false).",
        )
