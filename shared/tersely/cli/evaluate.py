"""`tersely evaluate`: a pinned model on held-out prompts, greedy and sampled, beside its baselines."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tersely.cli.options import JsonOption

if TYPE_CHECKING:
    from tersely.config import Recipe
    from tersely.evaluation.build import Judge


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("evaluate", help="Measure a policy on held-out prompts, with intervals and baselines.")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="Run, model folder, hub id or name.")],
    data: Annotated[str | None, typer.Option("--data", metavar="SPEC", help="As data.source of a recipe.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Part of the data (default: val).")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, help="The first so many prompts; 0: all.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the sampling.")] = None,
    target_tokens: Annotated[int | None, typer.Option("--target-tokens", min=1, help="Length to ask for.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Sampled summaries per prompt.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.01, max=4)] = None,
    max_document_tokens: Annotated[
        int | None, typer.Option("--max-document-tokens", min=16, help="Longer documents are cut.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="FILE.json", help="Take all settings of that evaluation.")
    ] = None,
    rewards: Annotated[str, typer.Option("--rewards", metavar="A,B", help="More rewards to measure.")] = "",
    baselines: Annotated[bool, typer.Option("--baselines", help="Also what could be had without training.")] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The untrained model (default: the recipe's).")
    ] = None,
    best_of: Annotated[int, typer.Option("--best-of", min=2, max=64, help="n of the baseline best-of-n.")] = 4,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="URL", help="OpenAI-compatible endpoint that judges.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME", help="Model there (default: the only one).")
    ] = None,
    judge_key_env: Annotated[
        str | None, typer.Option("--judge-key-env", metavar="NAME", help="Variable with the endpoint's key.")
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="Allow a test split; the look is logged.")] = False,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="Of a run: last, best or a step.")] = "last",
    engine: Annotated[str, typer.Option("--engine", help="Rollout engine.")] = "torch",
    device: Annotated[str, typer.Option("--device", help="For the engine.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: all cores).")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.json", help="Write it here.")] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="And a page of it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints a table; the whole evaluation goes to -o, or to standard output with --json."""
    from tersely.cli.evaluating import complete, show_progress
    from tersely.cli.summarize import find_policy
    from tersely.cli.tools import load_tool
    from tersely.evaluation.build import baseline_arms, build_evaluation, model_arms
    from tersely.evaluation.files import dumps, is_test_split, read_evaluation, write_evaluation
    from tersely.evaluation.settings import resolve_settings
    from tersely.telemetry.logging import configure_logging

    configure_logging("evaluate", level="WARNING")
    if judge_model and not judge:
        raise typer.BadParameter("A model that judges needs the URL where it is served.", param_hint="--judge")
    given = {
        "data": data,
        "split": split,
        "limit": limit,
        "seed": seed,
        "target_tokens": target_tokens,
        "samples": samples,
        "temperature": temperature,
        "max_document_tokens": max_document_tokens,
    }
    earlier = read_evaluation(like) if like else None
    extra = [name.strip() for name in rewards.split(",") if name.strip()]
    with ExitStack() as stack:
        folder, recipe = find_policy(model, checkpoint, stack)
        settings = resolve_settings(recipe, earlier, given)
        if is_test_split(settings.split):
            _allow_final(model, folder, settings.head(), final=final)
        records = settings.records()
        score = load_tool("score_rows", extra="scorer")
        best = _best_of(recipe, best_of)
        base_folder = None
        if baselines:
            base_folder = _find_base(base, recipe, folder)
        own_samples = max(settings.samples, best_of if baselines and base_folder == folder else 0)
        run = {"engine": engine, "device": device, "threads": threads}
        with show_progress() as progress:
            done = complete(folder, records, settings, own_samples, run, progress, "model")
            arms = model_arms(done.prompts, settings.samples)
            beside = {}
            if base_folder is not None:
                other = done
                if base_folder != folder:
                    most = max(settings.samples, best_of)
                    other = complete(base_folder, records, settings, most, run, progress, "base model")
                beside = baseline_arms(other.prompts, settings.samples, best, score, zero_shot=other is not done)
        head = {
            "model": model,
            "checkpoint": checkpoint,
            **_identity(folder, done.weights_sha256, recipe),
            **settings.head(),
            "engine": done.engine,
            "base": None if base_folder is None else {"model": base or (recipe and recipe.model.name) or model},
            "best_of_by": dict(best.weights) if beside else None,
            "judge": judge_model or judge,
            "final": is_test_split(settings.split),
        }
        judged_by = _judge(judge, judge_model, judge_key_env) if judge else None
        found = build_evaluation(head, done.prompts, arms, beside, score, extra_rewards=extra, judge=judged_by)
    if out:
        write_evaluation(out, found)
    if report:
        from tersely.report.evaluation_page import render_evaluation
        from tersely.telemetry.atomic import write_atomic

        write_atomic(report, render_evaluation(found))
    if as_json:
        typer.echo(dumps(found), nl=False)
        return
    from tersely.evaluation.table import evaluation_lines

    for line in evaluation_lines(found):
        typer.echo(line)


def _allow_final(model: str, folder: Path, head: dict[str, Any], *, final: bool) -> None:
    from tersely.evaluation.files import FINAL_LOG, log_final
    from tersely.models.cache import cache_folder

    if not final:
        raise typer.BadParameter(
            f"{head['split']} is a test split: looked at more than once, it is no longer one. Say --final when it is"
            " the last evaluation; the look is logged.",
            param_hint="--split",
        )
    entry = {"data": head["data"], "split": head["split"], "limit": head["limit"], "model": model}
    looks = log_final(cache_folder(), entry)
    if Path(model).is_dir() and (Path(model) / "recipe.json").is_file():
        log_final(Path(model), entry)
    typer.echo(f"look {looks} at {head['data']} {head['split']}, logged in {cache_folder() / FINAL_LOG}", err=True)


def _find_base(base: str | None, recipe: Recipe | None, folder: Path) -> Path:
    from tersely.errors import ModelMissing
    from tersely.models.locate import locate_model

    name = base or (recipe.model.name if recipe else None)
    if name is None:
        return folder
    try:
        return locate_model(name, None if base or recipe is None else recipe.model.revision)
    except ModelMissing as error:
        raise ModelMissing(error.message, "Name the untrained model with --base.") from None


def _best_of(recipe: Recipe | None, n: int) -> Any:
    """The rewards that the policy was trained with, at their last weights; a judge can't choose among samples here."""
    from tersely.evaluation.build import BestOf

    if recipe is None:
        return BestOf(n, {"length": 1.0, "rouge_l": 1.0})
    weights = {name: w for name, w in recipe.reward_weights(recipe.run.steps).items() if w and name != "judge"}
    return BestOf(
        n,
        weights or {"length": 1.0, "rouge_l": 1.0},
        {name: recipe.rewards[name].options for name in weights if recipe.rewards[name].options},
    )


def _identity(folder: Path, weights_sha256: str, recipe: Recipe | None) -> dict[str, Any]:
    import hashlib

    from tersely.models.provenance import read_provenance

    known = read_provenance(folder) or {}
    tokenizer = folder / "tokenizer.json"
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else None
    return {
        "trained": recipe is not None,
        "run_id": known.get("run_id"),
        "step": known.get("step"),
        "policy_version": known.get("policy_version"),
        "weights_sha256": weights_sha256,
        "tokenizer": None if digest is None else f"sha256:{digest}",
    }


def _judge(url: str, name: str | None, key_env: str | None) -> Judge:
    from tersely.cli.evaluating import judge_rows

    return lambda rows: judge_rows(rows, url, name, key_env)
