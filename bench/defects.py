"""What three defects of other trainers cost, on the tiny model: one table.

usage: python bench/defects.py [--seeds 3] [--steps 60] [--out FILE]

Each row is a whole run of `tersely up` (trainer, worker, scorer, Valkey) with a defect brought in by `learner.ablate`:

* bf16_masters: weights and updates in bf16. At a small learning rate most updates are lost in rounding.
* no_stop_token: the sampled stop token is left out of the loss, in a task that is about where to stop.
* recomputed_logprobs: the ratio is to the learner's own logprobs at the start of the batch, not to those recorded when
  the tokens were sampled, with groups up to 4 versions old.

Figures: |tokens - target| and share within +-5 over the sampled completions of the last five steps, and of the held-out
prompts (sampled) before and after; share of published weights that differ from the start. Mean over seeds and range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tersely.models.locate import locate_model

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "tiny.toml"
SLOW = ["learner.learning_rate=2e-5"]
STALE = ["run.max_staleness=4"]
ROWS: dict[str, tuple[str, list[str]]] = {
    "sound": ("lr 5e-3, synchronous", []),
    "no_stop_token": ("lr 5e-3, synchronous", ["learner.ablate=['no_stop_token']"]),
    "sound, small lr": ("lr 2e-5, synchronous", SLOW),
    "bf16_masters, small lr": ("lr 2e-5, synchronous", [*SLOW, "learner.ablate=['bf16_masters']"]),
    "sound, stale": ("lr 5e-3, max_staleness 4", STALE),
    "recomputed_logprobs, stale": ("lr 5e-3, max_staleness 4", [*STALE, "learner.ablate=['recomputed_logprobs']"]),
}


def run(settings: list[str], seed: int, steps: int, folder: Path) -> dict[str, float]:
    """One run from start to end; its figures."""
    sets = [f"run.seed={seed}", f"run.steps={steps}", "run.checkpoint_every=1000", "evaluation.prompts=12"]
    command = [sys.executable, "-m", "tersely.cli", "up", str(RECIPE), "--run-dir", str(folder)]
    for item in [*sets, *settings]:
        command += ["--set", item]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    report = json.loads((folder / "report.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    last = [event for event in events if event["kind"] == "step_finished"][-5:]
    first, final = load_file(locate_model("tiny") / "model.safetensors"), load_file(folder / "policy/model.safetensors")
    moved = sum(int((first[name] != final[name]).sum()) for name in final)
    return {
        "train_error": statistics.fmean(event["mean_abs_length_error"] for event in last),
        "train_within_5": statistics.fmean(event["within_5"] for event in last),
        "held_out_error_before": report["held_out"]["before"]["sampled"]["mean_abs_length_error"],
        "held_out_error_after": report["held_out"]["after"]["sampled"]["mean_abs_length_error"],
        "stopped_after": report["held_out"]["after"]["sampled"]["stopped"],
        "weights_moved": moved / sum(tensor.numel() for tensor in final.values()),
        "staleness": statistics.fmean(e["staleness"] for e in events if e["kind"] == "step_finished"),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Mean and range."""
    return {"mean": statistics.fmean(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, help="Write the figures of every run here.")
    args = parser.parse_args()
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, (setting, settings) in ROWS.items():
            runs = []
            for seed in range(args.seeds):
                began = time.monotonic()
                runs.append(run(settings, seed, args.steps, Path(temporary) / f"{len(table)}-{seed}"))
                print(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s {runs[-1]}", file=sys.stderr)
            figures = {key: spread([figures[key] for figures in runs]) for key in runs[0]}
            table[name] = {"setting": setting, "figures": figures, "runs": runs}
    if args.out:
        args.out.write_text(json.dumps({"steps": args.steps, "seeds": args.seeds, "rows": table}, indent=1) + "\n")
    print("| run | setting | error, last 5 steps | within 5 | held-out error | stopped | weights moved | staleness |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in table.items():
        f = row["figures"]
        error = f["train_error"]
        print(
            f"| {name} | {row['setting']} | {error['mean']:.1f} ({error['least']:.1f} to {error['most']:.1f})"
            f" | {f['train_within_5']['mean']:.0%}"
            f" | {f['held_out_error_before']['mean']:.1f} -> {f['held_out_error_after']['mean']:.1f}"
            f" | {f['stopped_after']['mean']:.0%} | {f['weights_moved']['mean']:.1%} | {f['staleness']['mean']:.1f} |"
        )


if __name__ == "__main__":
    main()
