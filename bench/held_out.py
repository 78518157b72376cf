"""Policies against the base model on a held-out split: length, ROUGE-L, likeness to the source, stopping.

usage: python bench/held_out.py RECIPE NAME=FOLDER [NAME=FOLDER ...]
       [--split test] [--prompts 100] [--samples 1] [--threads N] [--out FILE]

Every policy gets the prompts of the recipe: one greedy completion and `--samples` at temperature 1 per prompt, with one
sampling seed for all. The first policy named is what the others are compared with, prompt by prompt (95 % BCa
intervals); it also stands in the table with its completions cut at the target, as a baseline for quality at equal
length. FOLDER is a Hugging Face folder, a run directory's `policy`, or a name such as smollm2-135m. Figures are
means over prompts: share within +-5 tokens of the target (a completion cut off at the limit never counts),
|tokens - target|, ROUGE-L F to the reference, cosine of MiniLM embeddings to the source, share that ended by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from embedding import Embedder
from safetensors.torch import load_file

from tersely.config import Recipe, load_recipe
from tersely.data.prompts import prepare_prompts
from tersely.data.records import load_records
from tersely.evaluation import WITHIN_TOKENS
from tersely.evaluation.paired import paired_difference
from tersely.grpo.seeds import group_seed
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.engines.base import EngineSettings, generate
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.rouge import RougeLReward
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

FIGURES = ("within_5", "abs_length_error", "rouge_l", "source_cosine", "stopped", "tokens")


def completions(recipe: Recipe, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per completion of a policy, without the figures that need other texts."""
    tokenizer = PolicyTokenizer.from_folder(folder)
    target = recipe.length.target_tokens
    records = load_records(recipe.data, args.split)[: args.prompts]
    prompts = prepare_prompts(records, tokenizer, recipe.data, target)
    groups = []
    for index, prompt in enumerate(prompts):
        group = group_pb2.PromptGroup(
            group_id=str(index),
            prompt_token_ids=prompt.token_ids,
            group_size=1 + args.samples,
            stop_token_ids=tokenizer.stop_token_ids,
        )
        group.sampling.greedy_samples = 1
        group.sampling.temperature = 1.0
        group.sampling.max_completion_tokens = recipe.max_completion_tokens
        group.sampling.seed = group_seed(args.seed, index, prompt.prompt_id)
        groups.append(group)
    engine = TorchEngine(EngineSettings("cpu", args.threads, batch_sequences=32))
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(file))
    engine.load(folder, WeightsLabel(PolicyVersion(0), "0" * 64), weights)
    rows = []
    for done, result in enumerate(generate(engine, groups), 1):
        prompt = prompts[int(result.prompt.group_id)]
        for index, completion in enumerate(result.completions):
            stopped = completion.finish_reason == common_pb2.FINISH_REASON_STOP
            tokens = len(completion.token_ids) - stopped
            rows.append(
                {
                    "prompt_id": prompt.prompt_id,
                    "mode": "sampled" if index else "greedy",
                    "tokens": tokens,
                    "abs_length_error": abs(tokens - target),
                    "within_5": stopped and abs(tokens - target) <= WITHIN_TOKENS,
                    "stopped": stopped,
                    "text": tokenizer.decode(completion.token_ids),
                    "cut_text": tokenizer.decode(completion.token_ids[: min(tokens, target)]),
                    "document": prompt.document,
                    "reference": prompt.reference,
                }
            )
        print(f"\r{folder.name}: {done}/{len(groups)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return sorted(rows, key=lambda row: (row["mode"], row["prompt_id"]))


def add_text_figures(rows: list[dict[str, Any]], embedder: Embedder) -> None:
    """ROUGE-L to the reference and cosine to the source, in place."""
    inputs = [RewardInput(row["text"], reference=row["reference"], group_key=row["prompt_id"]) for row in rows]
    for row, value in zip(rows, RougeLReward().score(inputs), strict=True):
        row["rouge_l"] = value
    documents = sorted({row["document"] for row in rows})
    vectors = dict(zip(documents, embedder.embed(documents), strict=True))
    for row, vector in zip(rows, embedder.embed([row["text"] or " " for row in rows]), strict=True):
        row["source_cosine"] = float(vector @ vectors[row["document"]])


def cut_to_target(rows: list[dict[str, Any]], target: int) -> list[dict[str, Any]]:
    """The same completions without what goes beyond the target: what scissors would do. Its stops are no merit."""
    return [
        {
            **row,
            "text": row["cut_text"],
            "tokens": min(row["tokens"], target),
            "abs_length_error": max(0, target - row["tokens"]),
            "within_5": row["tokens"] >= target - WITHIN_TOKENS,
            "stopped": row["stopped"] and row["tokens"] <= target,
        }
        for row in rows
    ]


def by_prompt(rows: list[dict[str, Any]], mode: str, figure: str) -> dict[str, float]:
    """Mean of a figure per prompt over the completions of one mode."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["mode"] == mode and row[figure] is not None:
            found.setdefault(row["prompt_id"], []).append(float(row[figure]))
    return {prompt_id: statistics.fmean(values) for prompt_id, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("policies", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--split", default="val")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="Write all completions and figures here.")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe).recipe
    embedder = Embedder()
    began = time.monotonic()
    rows: dict[str, list[dict[str, Any]]] = {}
    for item in args.policies:
        name, _, folder = item.partition("=")
        rows[name] = completions(recipe, locate_model(folder), args)
        add_text_figures(rows[name], embedder)
    first = next(iter(rows))
    cut = cut_to_target(rows[first], recipe.length.target_tokens)
    add_text_figures(cut, embedder)
    rows = {first: rows[first], f"{first}, cut": cut, **{name: found for name, found in rows.items() if name != first}}
    report: dict[str, Any] = {"split": args.split, "prompts": len(by_prompt(rows[first], "greedy", "tokens"))}
    report |= {"target_tokens": recipe.length.target_tokens, "seconds": round(time.monotonic() - began), "policies": {}}
    for name, found in rows.items():
        report["policies"][name] = {}
        for mode in ("greedy", "sampled"):
            values = {figure: by_prompt(found, mode, figure) for figure in FIGURES}
            entry: dict[str, Any] = {f: round(statistics.fmean(v.values()), 4) for f, v in values.items() if v}
            for other in [first, f"{first}, cut"] if name not in (first, f"{first}, cut") else []:
                entry[f"minus {other}"] = {
                    f: paired_difference(by_prompt(rows[other], mode, f), values[f]) for f in FIGURES[:4]
                }
            report["policies"][name][mode] = entry
    if args.out:
        args.out.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
