"""The final policy as a normal Hugging Face folder in the run directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = "model.safetensors"
_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".gguf")


def export_policy(model_folder: Path, weights: dict[str, Tensor], target: Path) -> Path:
    """Writes the published bf16 weights beside the base model's config and tokenizer; replaces an older export.

    Args:
        model_folder: Folder the run began with.
        weights: Published tensors, tied ones once.
        target: Folder to make.
    """
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in sorted(model_folder.iterdir()):
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, partial / file.name)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, partial / _WEIGHTS, metadata={"format": "pt"}
    )
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target
