"""The estimate of `tersely plan` beside the measured peak memory of a process that does what a trainer does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from tersely.models.tiny import make_tiny_model, tiny_text
from tersely.trainer.planning.tool import run_plan

MEASURE = Path(__file__).with_name("trainer_memory.py")

STEPS = 3


@dataclass(frozen=True)
class Size:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int


TWENTY_FIVE_MILLION = Size(384, 1024, 12, 6, 2, 16384)
FORTY_MILLION = Size(448, 1344, 12, 7, 7, 24576)

CONFIGS = {
    "tiny": (None, "group_size = 8\ngroups_per_step = 2", "", 200),
    "shared": (FORTY_MILLION, "group_size = 6\ngroups_per_step = 2", "", 150),
    "padded, in parts": (
        TWENTY_FIVE_MILLION,
        "group_size = 6\ngroups_per_step = 1",
        "shared_prompt = false\nmicro_batch_tokens = 700",
        150,
    ),
    "recompute": (TWENTY_FIVE_MILLION, "group_size = 8\ngroups_per_step = 1", "recompute = true", 250),
    "adapters": (TWENTY_FIVE_MILLION, "group_size = 6\ngroups_per_step = 1", "lora.rank = 8", 100),
}


def make_model(folder: Path, size: Size) -> None:
    """A random Llama with the tiny model's tokenizer."""
    make_tiny_model(folder)
    stop = json.loads((folder / "config.json").read_text())["eos_token_id"]
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=stop,
        pad_token_id=stop,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def make_recipe(folder: Path, name: str) -> Path:
    size, run, learner, document_tokens = CONFIGS[name]
    if size is None:
        make_tiny_model(folder / "model")
    else:
        make_model(folder / "model", size)
    text = tiny_text()
    records = [{"id": str(i), "document": text[i * 500 :][:4000], "summary": "x"} for i in range(3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[run]\nsteps = {STEPS}\n{run}\n[model]\nname = "{folder}/model"\n[length]\ntarget_tokens = 24\n'
        f'[data]\nsource = "{folder}/train.jsonl"\nmax_document_tokens = {document_tokens}\n'
        f"[learner]\nthreads = 1\n{learner}\n"
    )
    return recipe


def measure(recipe: Path, folder: Path, steps: int) -> int:
    command = [sys.executable, str(MEASURE), str(recipe), str(steps), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=360)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(tmp_path: Path, name: str) -> None:
    recipe = make_recipe(tmp_path, name)
    planned = run_plan(recipe, measure=False)["peak_memory_bytes"]
    measured = measure(recipe, tmp_path / "checkpoints", steps=STEPS)
    print(f"{name}: planned {planned / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB, {planned / measured:.3f}")
    assert 0.75 < planned / measured < 1.25
