"""The policy that a KL divergence is measured from: the one the run began with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tersely.models.linear import use_fast_linears


def load_reference(
    model_folder: Path, load: Callable[[Path], torch.nn.Module], device: torch.device
) -> torch.nn.Module:
    """A frozen copy of the initial policy, as it was published to samplers: rounded to bf16, held in fp32.

    It is read from the folder that the run began with, so after a resume it is the same again.

    Args:
        model_folder: Config, tokenizer and safetensors of the initial policy.
        load: Reads a folder.
        device: Where the learner runs.
    """
    model = load(model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
            parameter.requires_grad_(False)
    if device.type == "cpu":
        use_fast_linears(model)
    return model.to(device)
