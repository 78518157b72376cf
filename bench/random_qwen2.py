"""A model folder of the size of Qwen2-0.5B with random weights, for benchmarks of weights alone.

usage: python bench/random_qwen2.py FOLDER [--tokenizer smollm2-135m]

Shapes, tied embeddings and biases are those of Qwen2-0.5B (494 million weights, 988 MB in bf16). The weights are normal
with a standard deviation of 0.02, the tokenizer is another model's. It says nothing sensible: how many values a small
step changes, and how long a gigabyte takes, need no sense. Figures made with it are called `random-qwen2-0.5b`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config

from tersely.models.locate import locate_model

SHAPE: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Call it random-qwen2-0.5b: figures take its name.")
    parser.add_argument("--tokenizer", default="smollm2-135m")
    args = parser.parse_args()
    source = locate_model(args.tokenizer)
    stops = {k: v for k, v in json.loads((source / "config.json").read_text()).items() if k.endswith("_token_id")}
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPE, **stops)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    args.folder.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, args.folder / "model.safetensors", {"format": "pt"})
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(args.folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, args.folder / name)
    (args.folder / "generation_config.json").write_text(json.dumps(stops) + "\n")
    print(f"{sum(tensor.numel() for tensor in weights.values()) / 1e6:.0f} million random weights in {args.folder}")


if __name__ == "__main__":
    main()
