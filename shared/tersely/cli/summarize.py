"""`tersely summarize`: summaries by a trained policy, a model folder or a model's name."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tersely.cli.options import JsonOption

if TYPE_CHECKING:
    from tersely.config import Recipe


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("summarize", help="Summarize text files with a trained policy.")(summarize)


def summarize(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Text files; - is standard input.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Run, model folder, hub id or name.")],
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Length (default: as trained).")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=4, help="0: the likeliest words.")] = 0.0,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Summaries per file, with a temperature.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampling.")] = 0,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="Of a run: last, best or a step.")] = "last",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: all cores).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints the summaries alone on standard output; what there is to say about them goes to standard error."""
    from tersely.cli.tools import load_tool
    from tersely.telemetry.logging import configure_logging

    if samples > 1 and temperature == 0:
        raise typer.BadParameter("Samples only differ with --temperature above 0.", param_hint="--samples")
    configure_logging("summarize", level="WARNING")
    documents = [(name, read_text(name)) for name in files]
    with ExitStack() as stack:
        folder, trained = find_policy(model, checkpoint, stack)
        recipe = with_target(trained, tokens)
        found = load_tool("summarize", extra="rollout-torch")(
            folder,
            documents,
            recipe.data,
            target_tokens=recipe.length.target_tokens,
            max_completion_tokens=recipe.max_completion_tokens,
            temperature=temperature,
            samples=samples,
            seed=seed,
            threads=threads,
        )
        rows = []
        for summary in found:
            if as_json:
                rows.append(asdict(summary))
                continue
            typer.echo(("\n" if rows else "") + printable(summary.text))
            rows.append(asdict(summary))
            typer.echo(remark(rows[-1]), err=True)
    if as_json:
        typer.echo(json.dumps({"model": model, "summaries": rows}, indent=2, ensure_ascii=False))


def read_text(name: str) -> str:
    """Text of a file, or of standard input for `-`.

    Raises:
        DataMissing, DataRecord, DataEmpty: The file can't be read, is not UTF-8, or holds no text.
    """
    from tersely.errors import DataEmpty, DataMissing, DataRecord

    shown = "standard input" if name == "-" else name
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except OSError as error:
        raise DataMissing(f"{name} can't be read: {error.strerror}.", "Give a text file, or - for a pipe.") from None
    except UnicodeDecodeError:
        raise DataRecord(f"{shown} is not UTF-8 text.", "Save it as UTF-8; other formats must be converted.") from None
    if not text.strip():
        raise DataEmpty(f"{shown} holds no text: there is nothing to summarize.", "Give a file with text in it.")
    return text


def find_policy(model: str, checkpoint: str, stack: ExitStack) -> tuple[Path, Recipe | None]:
    """The model folder that a name stands for, and the recipe it was trained with; None if tersely did not train it.

    A checkpoint of a run is exported into a temporary folder, which `stack` removes.
    """
    from tersely.cli.tools import load_tool
    from tersely.config import Recipe
    from tersely.config.load import read_recipe
    from tersely.errors import ModelMissing
    from tersely.models.locate import locate_model
    from tersely.models.provenance import read_provenance
    from tersely.supervise.run_dir import RunDir, read_json

    run = RunDir(Path(model).expanduser().resolve())
    if run.recipe.is_file() and not (run.path / "config.json").exists():
        recipe = read_recipe(run.recipe)
        state = (read_json(run.status) or {}).get("state")
        policy = run.path / "policy"
        if checkpoint == "last" and state == "finished" and policy.is_dir():
            published = (read_json(run.report) or {}).get("final_weights_sha256")
            there = (read_provenance(policy) or {}).get("weights_sha256")
            if None in (published, there) or published == there:
                return policy, recipe
            typer.echo(f"{policy} does not hold the run's last weights: taking its last checkpoint", err=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tersely-policy-"))) / "policy"
        found = load_tool("export")(run.path, folder, checkpoint)
        if not found["finished"] or checkpoint != "last":
            typer.echo(f"with the checkpoint of step {found['step']} of {found['steps']}", err=True)
        return folder, recipe
    if checkpoint != "last":
        raise typer.BadParameter(f"{model} is no run: it has no checkpoints.", param_hint="--checkpoint")
    try:
        folder = locate_model(model)
    except ModelMissing as error:
        raise ModelMissing(
            error.message,
            "Give --model a run's directory, a model folder, a hub id (owner/name), smollm2-135m or tiny.",
        ) from None
    provenance: dict[str, Any] | None = read_provenance(folder)
    return folder, None if provenance is None else Recipe.model_validate(provenance["recipe"])


def with_target(trained: Recipe | None, tokens: int | None) -> Recipe:
    """The recipe (else the defaults) with the length to ask for; says so where the policy was not trained for it."""
    from tersely.config import Recipe

    recipe = trained or Recipe()
    if tokens is None:
        return recipe
    least, most = recipe.length.target_range or (recipe.length.target_tokens, recipe.length.target_tokens)
    if trained is not None and not least <= tokens <= most:
        lengths = f"{least}" if least == most else f"{least} to {most}"
        typer.echo(f"the model was trained for {lengths} tokens: it may not keep to {tokens}", err=True)
    update = {"target_tokens": tokens, "target_range": None, "max_completion_tokens": None}
    return recipe.model_copy(update={"length": recipe.length.model_copy(update=update)})


def remark(row: dict[str, Any]) -> str:
    """What there is to say about a summary."""
    end = "ended by itself" if row["stopped"] else "cut off at the limit"
    cut = row["document_tokens_cut"]
    left_out = f"; the last {cut} tokens of the text did not fit and were left out, as in training" if cut else ""
    return f"{row['document']}: {row['tokens']} tokens (asked for {row['target_tokens']}), {end}{left_out}"


def printable(text: str) -> str:
    """Text without the control characters that would steer a terminal; lines and tabs stay."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
