"""The policy that a KL divergence is measured from: the one the run began with."""

from __future__ import annotations

from pathlib import Path

import torch

from tersely.models.linear import use_fast_linears
from tersely.models.load import load_policy
from tersely.trainer.forward import Forward, ForwardSettings
from tersely.trainer.groups import GroupRows
from tersely.trainer.masters import AdamMasters


class Reference:
    """The initial policy as it was published to samplers, rounded to bf16: also after a resume.

    With adapters it is the model itself with the adapters off; else a frozen copy, read from the folder that the run
    began with.

    Args:
        model_folder: Config, tokenizer and safetensors of the initial policy.
        model: The policy that is trained.
        masters: Of that model.
    """

    def __init__(self, model_folder: Path, model: torch.nn.Module, masters: AdamMasters) -> None:
        self._masters = masters
        self._copy: torch.nn.Module | None = None
        self._model = model
        if masters.initial_policy() is None:
            self._copy = load_policy(model_folder).requires_grad_(False)
            with torch.no_grad():
                for parameter in self._copy.parameters():
                    parameter.copy_(parameter.to(torch.bfloat16))
            device = next(model.parameters()).device
            if device.type == "cpu":
                use_fast_linears(self._copy)
            self._copy.to(device)

    @torch.no_grad()
    def logprobs(self, forward: Forward, group: GroupRows, settings: ForwardSettings) -> torch.Tensor:
        """[R, C] log-probabilities of a group's sampled tokens, without gradient."""
        inputs = (group.prompt, group.completion, group.lengths, settings)
        if self._copy is not None:
            return forward(self._copy, *inputs).logprobs
        initial = self._masters.initial_policy()
        assert initial is not None
        with initial:
            return forward(self._model, *inputs).logprobs
