"""One trainer at work on one run: puts the parts together, runs the loop, and leaves everything in order."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import structlog

from tersely.config import Recipe
from tersely.data.prompts import PreparedPrompt, PromptSource
from tersely.errors import CheckpointInvalid
from tersely.models.tokenizer import PolicyTokenizer
from tersely.node.drain import DrainSignal
from tersely.node.heartbeat import Heartbeater, read_nodes
from tersely.queue.connect import redis_errors
from tersely.rpc.server import GrpcServer
from tersely.telemetry.events import EventLog
from tersely.telemetry.samples import SampleLog
from tersely.trainer.books import Books
from tersely.trainer.checkpoint import list_checkpoints
from tersely.trainer.collector import Collector
from tersely.trainer.doors import Doors
from tersely.trainer.environment import environment_facts
from tersely.trainer.evaluation import EvaluationDesk
from tersely.trainer.event_repair import repair_events
from tersely.trainer.export import export_policy
from tersely.trainer.issuing import Issuer
from tersely.trainer.learner import Learner
from tersely.trainer.lease_watch import LeaseWatch
from tersely.trainer.ledger import Outcome
from tersely.trainer.loop import TrainingLoop
from tersely.trainer.nodes import node_facts
from tersely.trainer.parts import Parts
from tersely.trainer.provenance import provenance_of
from tersely.trainer.publishing import prepare_version
from tersely.trainer.recorder import Recorder
from tersely.trainer.report import build_report
from tersely.trainer.resume import History, Position, Start, choose_start, read_log, restore
from tersely.trainer.ring import Arrival, Ring
from tersely.trainer.run_directory import RunDirectory, course_sha256, refuse_other_course
from tersely.trainer.run_service import RunServicer
from tersely.trainer.status import Status, StatusWriter
from tersely.trainer.wal import WriteAheadLog
from tersely.trainer.watchdog.absent import why_unscored
from tersely.trainer.watchdog.pace import Pace
from tersely.trainer.watchdog.setup import watch_over
from tersely.types import NodeId, RunId, WeightsLabel
from tersely.v1 import log_pb2, run_pb2_grpc
from tersely.weights.servicer import CheckpointServicer
from tersely.weights.store import SnapshotStore

if TYPE_CHECKING:
    from tersely.trainer.distributed.team import Team

log = structlog.get_logger(__name__)

FINISHED, DRAINED = 0, 75
"""Exit codes of a trainer that ended in good order; 75 (EX_TEMPFAIL) means: start again with --resume."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run is made of, read and checked."""

    recipe: Recipe
    redis_url: str
    client: redis.Redis
    model_folder: Path
    tokenizer: PolicyTokenizer
    train_prompts: PromptSource
    eval_prompts: Sequence[PreparedPrompt]
    process_started: float
    team: Team | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """What is there before the model is loaded."""

    run_id: RunId
    store: SnapshotStore
    status: Status
    ring: Ring
    events: EventLog
    books: Books
    heartbeat: Heartbeater


def run_session(inputs: Inputs, directory: RunDirectory, drain: DrainSignal, stack: ExitStack) -> int:
    """Runs the loop with everything around it; `stack` closes what was opened.

    Returns:
        FINISHED or DRAINED.
    """
    recipe = inputs.recipe
    history = read_log(directory.log_file) if directory.log_file.exists() else History()
    resumed = history.run_id is not None
    if resumed:
        refuse_other_course(history.recipe_sha256, recipe, directory.read_json("recipe.json"))
    stage = open_stage(inputs, directory, drain, stack, history)
    store, status, ring, events = stage.store, stage.status, stage.ring, stage.events

    learner = _learner(inputs)
    first = prepare_version(store, 0, learner)
    if learner.low_rank() is not None:
        store.keep_adapter_base(first)
    initial = history.initial or first.label
    if first.label.weights_sha256 != initial.weights_sha256:
        raise CheckpointInvalid(
            "The model is not the one that this run was begun with.",
            "Restore the model folder, or name the model's revision in the recipe; or begin a new run.",
        )
    wal = stack.enter_context(WriteAheadLog(directory.log_file, directory.check_incarnation))
    checkpoints = list_checkpoints(directory.checkpoints)
    start = choose_start(history, checkpoints) if resumed else Start(0, initial)
    wal.append(_started(stage.run_id, directory.incarnation, initial, recipe, learner, start), sync=True)
    directory.write_json("recipe.json", recipe.model_dump(mode="json"))
    if inputs.eval_prompts and directory.read_json("evaluation-before.json") is None:
        store.announce(first)
        store.pin(initial)
    if resumed:
        repair_events(wal.records(), events)
    samples = stack.enter_context(SampleLog(directory.file("samples.jsonl")))
    recorder = Recorder(events, samples, status, recipe)
    position = Position(0, initial)
    if resumed:
        position = restore(history, start, checkpoints, learner, store, wal, events, recorder)
    if position.label == initial:
        store.announce(first)
    else:
        store.announce(prepare_version(store, position.label.policy_version, learner))
    store.restoring = False
    status.update(step=position.step, policy_version=position.label.policy_version)

    issuer = Issuer(stage.run_id, directory.incarnation, recipe, inputs.train_prompts, inputs.tokenizer.stop_token_ids)
    desk = EvaluationDesk(ring)
    watched = watch_over(inputs, stage, directory, drain, stack)
    collector = Collector(
        recipe,
        issuer,
        history.ledger,
        ring,
        wal,
        events,
        desk=desk,
        on_dropped=partial(_dropped, recorder, status, watched.pace, recipe),
    )
    stage.books.accepted = collector.accepted
    parts = Parts(
        recipe=recipe,
        directory=directory,
        wal=wal,
        ring=ring,
        issuer=issuer,
        collector=collector,
        desk=desk,
        learner=learner,
        store=store,
        events=events,
        recorder=recorder,
        status=status,
        drain=drain,
        eval_prompts=inputs.eval_prompts,
        pace=watched.pace,
    )
    loop = TrainingLoop(parts, position, history, initial)
    if resumed:
        collector.take_again()
    try:
        finished = loop.run()
        if not finished:
            watched.check()
    except BaseException:
        status.update(state="failed", waiting_for=None)
        raise
    if not finished:
        events.write("run_drained", step=loop.step, stopped_by=loop.stopped_by or None)
        status.update(state="drained", waiting_for=None)
        return DRAINED
    provenance = provenance_of(directory.path, recipe, stage.run_id, loop.step, loop.label)
    export_policy(
        inputs.model_folder, learner.published(), directory.file("policy"), provenance, adapter=learner.adapter()
    )
    groups = stage.books.read()
    events.write("run_finished", run_id=stage.run_id, groups=groups)
    directory.write_json(
        "report.json", build_report(directory, recipe, initial=initial, final=loop.label, groups=groups)
    )
    status.update(state="finished", waiting_for=None)
    return FINISHED


def _dropped(
    recorder: Recorder, status: Status, pace: Pace, recipe: Recipe, arrival: Arrival, outcome: Outcome
) -> None:
    step = status.snapshot()["step"] + 1
    recorder.dropped(arrival.group, outcome, step)
    if outcome is Outcome.NO_SIGNAL and (reason := why_unscored(arrival.group, recipe.reward_weights(step))):
        pace.unscored(reason)


def _learner(inputs: Inputs) -> Learner:
    recipe, stop_token_ids = inputs.recipe, inputs.tokenizer.stop_token_ids
    if inputs.team is not None:
        return inputs.team.learner(inputs.model_folder, recipe, stop_token_ids)
    return Learner(
        inputs.model_folder,
        recipe.learner,
        temperature=recipe.sampling.temperature,
        reward_weights=recipe.reward_weights,
        total_steps=recipe.run.steps,
        max_completion_tokens=recipe.max_completion_tokens,
        stop_token_ids=stop_token_ids,
    )


def open_stage(
    inputs: Inputs, directory: RunDirectory, drain: DrainSignal, stack: ExitStack, history: History
) -> Stage:
    """Listens, announces itself and shows its state, so that nodes can come while the model is loaded.

    Args:
        inputs: What the run is made of.
        directory: Of the run; `run.json` in it says where it listens.
        drain: Ended by nodes through RunService.
        stack: Closes what was opened.
        history: What the run's log says so far; its ledger is shown in the status.

    Raises:
        TerselyError: Queue or port, each in its own class.
    """
    recipe = inputs.recipe
    run_id = history.run_id or RunId(f"r-{secrets.token_hex(4)}")
    store = SnapshotStore(
        run_id,
        inputs.model_folder,
        inputs.tokenizer.stop_token_ids,
        recipe.rpc.chunk_bytes,
        directory.incarnation,
        keep=recipe.rpc.snapshots,
        keep_bytes=recipe.rpc.snapshot_bytes,
    )
    store.restoring = history.run_id is not None
    status = Status(
        run_id=run_id,
        state="starting",
        step=0,
        steps=recipe.run.steps,
        policy_version=-1,
        incarnation=directory.incarnation,
        waiting_for="the model to be loaded",
        groups=history.ledger.counts(0),
        nodes=[],
        queues={},
        last_step=None,
        evaluation=None,
        stage=None,
        best=directory.read_json("best.json"),
        stopped_by=None,
        stall=None,
    )
    server = GrpcServer(recipe.rpc.host, recipe.rpc.port, recipe.rpc.insecure_lan)
    checkpoints = CheckpointServicer(store)
    server.add(checkpoints.register, checkpoints.close)
    public_url = recipe.queue.url or ""
    doors = Doors(server, recipe, run_id, inputs.client)
    server.add(doors.nodes(public_url, recipe.model_dump_json(), directory.incarnation).register)
    server.add(lambda s: run_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(status, drain), s))
    address = server.start()
    stack.callback(server.stop)
    join_address = doors.open(stack)
    ring = Ring(inputs.client, run_id, recipe.queue)
    ring.create()
    events = stack.enter_context(EventLog(directory.file("events.jsonl")))
    if history.run_id is None:  # else the one that the log knows stays until the log knows this one
        directory.write_json("recipe.json", recipe.model_dump(mode="json"))
    directory.announce(run_id=run_id, trainer_address=address, redis_url=public_url, **join_address)
    events.write(
        "run_started" if history.run_id is None else "run_resumed",
        run_id=run_id,
        incarnation=directory.incarnation,
        process_started=inputs.process_started,
        recipe=recipe.model_dump(mode="json"),
    )
    log.info("listening", address=address, run_id=run_id)
    books = Books(history.ledger, ring, events)
    heartbeat = Heartbeater(inputs.client, ring.keys, NodeId(f"trainer-{directory.incarnation}"), "trainer")
    stage = Stage(run_id, store, status, ring, events, books, heartbeat)
    _show_state(stage, inputs, directory, stack)
    return stage


def _show_state(stage: Stage, inputs: Inputs, directory: RunDirectory, stack: ExitStack) -> None:
    ring, status, heartbeat = stage.ring, stage.status, stage.heartbeat
    heartbeat.start()
    stack.callback(heartbeat.leave)
    streams = [("prompts", ring.prompts, "rollout"), ("eval_prompts", ring.evaluation_prompts, "rollout")]
    streams.append(("completions", ring.completions, "scorer"))
    leases = LeaseWatch(inputs.client, streams, inputs.recipe.queue.lease_seconds, stage.events)

    def refresh() -> dict[str, Any]:
        state = status.snapshot()
        heartbeat.update(
            state=state["state"], detail=state["waiting_for"] or "", policy_version=state["policy_version"]
        )
        status.update(seconds=time.time() - inputs.process_started)
        with redis_errors():
            nodes = [node_facts(node) for node in read_nodes(inputs.client, ring.keys)]
        seen = {
            "groups": {**stage.books.read(), "duplicates": stage.books.duplicates()},
            "nodes": nodes,
            "queues": {name: {"waiting": d.waiting, "leased": d.leased} for name, d in ring.depths().items()},
        }
        leases.look(nodes)
        return seen

    writer = StatusWriter(directory, status, refresh)
    writer.start()
    stack.callback(writer.stop)


def _started(
    run_id: RunId, incarnation: int, initial: WeightsLabel, recipe: Recipe, learner: Learner, start: Start
) -> log_pb2.LogRecord:
    return log_pb2.LogRecord(
        trainer_started=log_pb2.TrainerStarted(
            run_id=run_id,
            incarnation=incarnation,
            initial_weights=initial.to_proto(),
            recipe_sha256=course_sha256(recipe),
            environment=environment_facts(learner.device, learner.threads, recipe.learner, learner.ranks),
            checkpoint_step=start.step,
        )
    )
