"""The command line's root: collects the commands, turns errors into text and an exit code."""

from __future__ import annotations

import signal
import sys

import typer

from tersely.cli import (
    ablate,
    bench,
    ca,
    compare,
    config,
    evaluate,
    export,
    invariants,
    join,
    judge_file,
    label,
    look,
    plan,
    quarantine,
    queue,
    replay,
    score,
    services,
    status,
    summarize,
    token,
    up,
)
from tersely.cli.judge_env import enter_judge_environment
from tersely.errors import TerselyError
from tersely.supervise.failures import report_failure
from tersely.supervise.lifeline import hold_lifeline

app = typer.Typer(
    name="tersely",
    help="Teach a small language model to write good summaries of an exact length, on hardware people own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
up.register(app)
services.register(app)
status.register(app)
look.register(app)
config.register(app)
replay.register(app)
bench.register(app)
plan.register(app)
export.register(app)
summarize.register(app)
evaluate.register(app)
compare.register(app)
ablate.register(app)
score.register(app)
judge_file.register(app)
label.register(app)
ca.register(app)
token.register(app)
join.register(app)
queue.register(app)
invariants.register(app)
quarantine.register(app)


def main() -> None:
    """Runs the command line; every failure that a user can meet ends as one message and its own exit code."""
    # Before the lifeline, whose thread would not go along.
    enter_judge_environment(sys.argv[1:])
    hold_lifeline()
    try:
        app()
    except TerselyError as error:
        report_failure(error)
        print(error.render(), file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
