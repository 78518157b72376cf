"""The trainer as a process: everything is read and checked before anything is written or listens."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

import psutil
import structlog

from tersely.config import load_recipe
from tersely.data.prompts import PromptBook
from tersely.data.records import load_records
from tersely.errors import ConfigValue, TerselyError
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.node.drain import DrainSignal
from tersely.node.options import ServiceOptions
from tersely.queue.connect import open_queue, refuse_plaintext, without_password
from tersely.telemetry.disk import disk_errors
from tersely.telemetry.logging import configure_logging
from tersely.trainer.distributed.launch import world_size
from tersely.trainer.evaluation import held_out_prompts
from tersely.trainer.planning.checks import check_before_start
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.session import Inputs, run_session

log = structlog.get_logger(__name__)


def run_trainer(options: ServiceOptions) -> int:
    """Trains a run to its end, or until a drain; under torchrun, as the rank that this process is.

    Returns:
        0 when the run is finished, 75 when it was drained before its end (it can be resumed).
    """
    configure_logging("trainer", json=options.log_json)
    if options.recipe is None or options.run_dir is None:
        raise ConfigValue("The trainer needs a recipe and a run directory.", "Give --recipe FILE and --run-dir DIR.")
    team = None
    if world_size() > 1:
        from tersely.trainer.distributed.group import join_ranks
        from tersely.trainer.distributed.team import Team, follow

        ranks = join_ranks()
        if ranks.rank > 0:
            return follow(ranks)
        team = Team(ranks)
    drain = DrainSignal()
    drain.install()
    with ExitStack() as stack:
        if team is not None:
            stack.callback(team.stop)
        inputs = replace(_read_inputs(options), team=team)
        directory = stack.enter_context(RunDirectory(options.run_dir, resume=options.resume))
        try:
            with disk_errors(f"the files of the run in {directory.path}"):
                return run_session(inputs, directory, drain, stack)
        except TerselyError:
            if not options.resume:
                directory.abandon_if_unused()
            raise


def _read_inputs(options: ServiceOptions) -> Inputs:
    assert options.recipe is not None
    recipe = load_recipe(options.recipe, options.overrides).recipe
    if options.threads is not None:
        recipe = recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"threads": options.threads})})
    redis_url = options.redis_url or recipe.queue.url
    if redis_url is None:
        raise ConfigValue(
            "The trainer on its own needs a Redis or Valkey server.",
            "Give --redis-url redis://HOST:6379 or set queue.url; `tersely up` brings an embedded server.",
        )
    refuse_plaintext(redis_url, allowed=recipe.rpc.insecure_lan)
    client = open_queue(recipe.queue, redis_url, os.environ)
    # From here on the recipe is shown, logged and sent to nodes.
    queue = recipe.queue.model_copy(update={"url": without_password(redis_url)})
    recipe = recipe.model_copy(update={"queue": queue})
    train = load_records(recipe.data, recipe.data.train_split)
    held_out = load_records(recipe.data, recipe.data.eval_split) if recipe.evaluation.prompts else []
    folder = locate_model(recipe.model.name, recipe.model.revision)
    tokenizer = PolicyTokenizer.from_folder(folder)
    check_before_start(recipe, folder, tokenizer, train)
    prompts = PromptBook(train, tokenizer, recipe.data)
    eval_prompts = held_out_prompts(held_out, tokenizer, recipe)
    prompts.prompt(0, recipe.length.longest_target)  # a chat template that refuses them should do so now
    log.info("data ready", prompts=len(prompts), held_out=len(eval_prompts), documents_cut=prompts.documents_cut)
    return Inputs(recipe, redis_url, client, folder, tokenizer, prompts, eval_prompts, psutil.Process().create_time())
