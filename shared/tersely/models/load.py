"""A model folder as a torch module."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tersely.errors import ModelInvalid
from tersely.models.folder import check_model_folder
from tersely.models.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch


def load_policy(folder: Path) -> torch.nn.Module:
    """Load a causal language model: fp32, on the CPU, in eval mode.

    Every parameter has memory of its own (tied ones share it, as in the model), not a mapped file: it may be written in
    place. Code in the folder is never run, and only safetensors are read.

    Args:
        folder: What `locate_model` returns.

    Raises:
        ModelInvalid: Unknown architecture, or weights that do not fit the config.
        ModelMissing: There is no such folder.
        ModelTokenizerMissing: The folder has no tokenizer or chat template.
    """
    check_model_folder(folder)
    transformers = quiet_transformers()
    import safetensors
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelInvalid(
            f"The model in {folder} can't be loaded: {reason[:300]}",
            "Use a causal language model that the installed transformers knows.",
        ) from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelInvalid(
            f"The weights in {folder} lack {len(missing)} tensors of the model, first {missing[0]}.",
            "Copy the model folder again; an adapter must be merged into its base model first.",
        )
    module: torch.nn.Module = model
    for parameter in module.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return module.eval()
