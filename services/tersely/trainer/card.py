"""The model card of a trained policy: what it is, how well it does, how it was made, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tersely.config import Recipe
from tersely.evaluation import WITHIN_TOKENS
from tersely.evaluation.paired import paired_difference
from tersely.trainer.provenance import Provenance, public_recipe

_BUILT_IN = {"smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
_FRONT_LICENSE = re.compile(r"\A---\n(?:.*\n)*?license:[ ]*(\S+)[ ]*\n(?:.*\n)*?---\n")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FIGURES = {
    "within_5": f"share within ±{WITHIN_TOKENS} tokens of the target",
    "abs_length_error": "mean distance from the target, tokens",
    "tokens": "mean length, tokens",
    "stopped": "share that ended by itself",
}
_SHARES = ("within_5", "stopped")
_Z_95 = 1.959963984540054


def model_card(provenance: Provenance, model_folder: Path, *, adapter: bool = False) -> str:
    """The card in Markdown, with the metadata block that model hubs read.

    Args:
        provenance: Where the policy comes from.
        model_folder: The base model, whose licence is looked up there.
        adapter: Whether the folder also holds a LoRA adapter.
    """
    recipe = provenance.recipe
    tree = public_recipe(recipe)
    base, licence = _base(tree["model"]["name"], model_folder)
    targets = recipe.length.target_range
    wanted = f"{recipe.length.target_tokens}" if targets is None else f"{targets[0]} to {targets[1]}"
    parts = [
        _front_matter(base, licence),
        f"# {Path(base).name}, summaries of {wanted} tokens\n",
        f"Trained from `{base}` by tersely {provenance.versions['tersely']}"
        f" (GRPO, {provenance.step} steps) to write summaries of {wanted} tokens of its own tokenizer, the token that"
        " ends the answer not counted.\n",
        _licence_line(licence, model_folder),
        "## Held-out figures\n",
        _figures(provenance),
        "## Use\n",
        _use(provenance, adapter=adapter),
        "## Training\n",
        f"Data: `{tree['data']['source']}`, split `{recipe.data.train_split}`; figures above on split"
        f" `{recipe.data.eval_split}`. {_rewards(recipe)}\n",
        _facts(provenance),
        "The recipe in full:\n",
        f"```json\n{json.dumps(tree, indent=2, ensure_ascii=False)}\n```",
    ]
    return "\n".join(parts) + "\n"


def _rewards(recipe: Recipe) -> str:
    """The rewards that were trained on with their weights, by stage where these differ, and those only measured."""
    weights: dict[str, list[float]] = {name: [] for name in recipe.rewards}
    for step in range(1, recipe.run.steps + 1):
        for name, weight in recipe.reward_weights(step).items():
            weights[name].append(weight)
    trained = []
    for name, course in weights.items():
        least, most = min(course), max(course)
        if (least, most) != (0, 0):
            trained.append(f"`{name}` (weight {least:g}{'' if least == most else f' to {most:g}, by stage'})")
    only = [f"`{name}`" for name, course in weights.items() if not any(course)]
    measured = f" Measured only, weight 0: {', '.join(only)}." if only else ""
    return f"Rewards: {', '.join(trained)}.{measured}"


def base_model(name: str) -> str:
    """The name by which hubs know a recipe's model, where there is one."""
    return _BUILT_IN[name][0] if name in _BUILT_IN else name


def interval(values: Sequence[float], *, is_share: bool) -> tuple[float, float] | None:
    """95 % interval of the mean of one value per prompt; None for fewer than two, or where all are equal.

    Shares of yes and no: Wilson's interval (1927), which stays open at 0 and 1. Else the bootstrap over prompts.
    """
    count = len(values)
    if count < 2:
        return None
    if is_share and set(values) <= {0.0, 1.0}:
        share = sum(values) / count
        scale = 1 + _Z_95**2 / count
        centre = (share + _Z_95**2 / (2 * count)) / scale
        half = _Z_95 / scale * (share * (1 - share) / count + _Z_95**2 / (4 * count**2)) ** 0.5
        return centre - half, centre + half
    found = paired_difference({str(i): 0.0 for i in range(count)}, {str(i): v for i, v in enumerate(values)})
    low, high = found["low"], found["high"]
    return None if low is None or high is None or low == high else (low, high)


def _figures(provenance: Provenance) -> str:
    before, after = provenance.before, provenance.after
    if after is None:
        return "These weights were not evaluated on held-out prompts.\n"
    lines = [
        "Means over prompts with 95 % intervals. Greedy: the likeliest token each time; sampled: temperature 1.\n",
        "| figure | before | after | difference | prompts |",
        "|---|---|---|---|---|",
    ]
    for mode in ("greedy", "sampled"):
        rewards = {name: name for row in after["rows"][:1] for name in row.get("rewards", ())}
        for figure, words in {**_FIGURES, **rewards}.items():
            late = _by_prompt(after["rows"], mode, figure)
            early = _by_prompt(before["rows"], mode, figure) if before is not None else {}
            if not late:
                continue
            change = paired_difference(early, late)
            means = [_mean(list(values.values()), is_share=figure in _SHARES) for values in (early, late)]
            lines.append(f"| {words}, {mode} | {means[0]} | {means[1]} | {_change(change)} | {len(late)} |")
    return "\n".join(lines) + "\n"


def _by_prompt(rows: Sequence[Mapping[str, Any]], mode: str, figure: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        value = row.get("rewards", {}).get(figure, row.get(figure))
        if row["mode"] == mode and value is not None:
            values.setdefault(row["prompt_id"], []).append(float(value))
    return {prompt_id: sum(found) / len(found) for prompt_id, found in values.items()}


def _mean(values: Sequence[float], *, is_share: bool) -> str:
    if not values:
        return "-"
    around = interval(values, is_share=is_share)
    mean = f"{sum(values) / len(values):.3f}"
    return mean if around is None else f"{mean} [{around[0]:.3f}, {around[1]:.3f}]"


def _change(found: Mapping[str, float | int | None]) -> str:
    if found["mean"] is None:
        return "-"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _use(provenance: Provenance, *, adapter: bool) -> str:
    recipe = provenance.recipe
    messages = [{"role": "user", "content": recipe.data.prompt}]
    if recipe.data.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": recipe.data.system_prompt})
    target, limit = recipe.length.target_tokens, recipe.max_completion_tokens
    lora = "\n`adapter/` holds the same change as a LoRA adapter (peft) for the base model.\n" if adapter else ""
    return f"""The prompt is that of its training, with documents cut to {recipe.data.max_document_tokens} tokens.

```sh
tersely summarize --model FOLDER document.txt
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, document = "FOLDER", open("document.txt").read()
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = {json.dumps(messages, ensure_ascii=False)}
for message in messages:
    message["content"] = message["content"].replace("{{target_tokens}}", "{target}").replace("{{document}}", document)
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens={limit}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

With MLX, fill in the prompt (the chat template is applied for you); `mlx_lm.convert --hf-path FOLDER -q` quantises it:

```sh
mlx_lm.generate --model FOLDER --max-tokens {limit} --temp 0 --prompt "..."
```
{lora}"""


def _facts(provenance: Provenance) -> str:
    rows = {
        "run": provenance.run_id,
        "steps": str(provenance.step),
        "policy version": str(provenance.label.policy_version),
        "hash of the weights": f"`{provenance.label.weights_sha256}`",
        **dict(provenance.versions),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _front_matter(base: str, licence: str | None) -> str:
    lines = ["---", *([f"license: {licence}"] if licence else [])]
    lines += [f"base_model: {base}"] if _HUB_ID.fullmatch(base) else []
    lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in ("summarization", "grpo", "tersely")), "---", ""])


def _base(name: str, model_folder: Path) -> tuple[str, str | None]:
    """Name of the base model for people and hubs, and its licence where its folder states one."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    card = model_folder / "README.md"
    found = _FRONT_LICENSE.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return name, found[1] if found else None


def _licence_line(licence: str | None, model_folder: Path) -> str:
    if licence:
        return f"Licence of the base model: {licence}.\n"
    files = sorted(path.name for path in model_folder.glob("LICENSE*"))
    if files:
        return f"Licence of the base model: see {files[0]}.\n"
    return "The base model's folder does not state a licence: look it up before you pass this model on.\n"
