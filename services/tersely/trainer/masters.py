"""fp32 master weights and their optimizer, apart from the model that runs.

bf16 has 8 bits of mantissa: at a learning rate of 1e-6 most updates are smaller than half a step of the weight they
would change, and adding them to bf16 weights loses them. The masters add them up; the model, the snapshots and so the
samplers hold the masters rounded to bf16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypedDict, Unpack

import torch

from tersely.config.learner import LearnerSection
from tersely.errors import CheckpointInvalid
from tersely.testing.faultpoints import reach
from tersely.trainer.distributed.tensors import part_like, whole
from tersely.weights.adapter import AdapterLayer

MASTER = "master"
OPTIMIZER_KINDS = ("step", "exp_avg", "exp_avg_sq")  # torch's names, a scalar and two tensors like the master

GradNorm = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""Gradients -> their L2 norm, a scalar."""


class Hooks(TypedDict, total=False):
    """Where several ranks have a say; arguments of every AdamMasters.

    Attributes:
        grad_norm: L2 norm over all gradients of the model.
        after_change: Called with the masters after every change of them.
    """

    grad_norm: GradNorm
    after_change: Callable[[Iterable[torch.Tensor]], None]


class AdamMasters(ABC):
    """fp32 tensors with AdamW, apart from what the model makes of them.

    Args:
        masters: By name; changed in place.
        section: Optimizer settings. Weight decay leaves vectors (norms, biases) alone.
        **hooks: See Hooks.
    """

    def __init__(
        self, masters: Mapping[str, torch.nn.Parameter], section: LearnerSection, **hooks: Unpack[Hooks]
    ) -> None:
        self._masters = dict(sorted(masters.items()))
        matrices = [master for master in self._masters.values() if master.dim() > 1]
        vectors = [master for master in self._masters.values() if master.dim() <= 1]
        self._max_grad_norm = section.max_grad_norm
        self._grad_norm = hooks.get("grad_norm", torch.nn.utils.get_total_norm)
        self._after_change = hooks.get("after_change")
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": section.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=section.learning_rate,
            betas=(section.adam_beta1, section.adam_beta2),
            eps=section.adam_epsilon,
            fused=True,
        )
        self._steps = 0
        self._changed()

    def step(self, learning_rate: float) -> float:
        """One AdamW step with the gradients that the model's parameters hold; they are gone afterwards.

        Returns:
            L2 norm of the gradient before clipping. If it is not finite nothing else has happened.
        """
        self._take_gradients()
        total = self._grad_norm([master.grad for master in self._masters.values() if master.grad is not None])
        norm = float(total)
        if norm - norm == 0:  # neither inf nor NaN
            torch.nn.utils.clip_grads_with_norm_(self._masters.values(), self._max_grad_norm, total)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            self._steps += 1
            self._changed()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """CPU copies of masters and optimizer state as `kind/name`, and how many steps the optimizer has done."""
        tensors = {f"{MASTER}/{name}": whole(master).to("cpu", copy=True) for name, master in self._masters.items()}
        for name, master in self._masters.items():
            for kind, tensor in self._optimizer.state.get(master, {}).items():
                tensors[f"{kind}/{name}"] = whole(tensor).to("cpu", copy=True)
        return tensors, {"optimizer_steps": self._steps}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Take over what `state` returned, bit by bit.

        Raises:
            CheckpointInvalid: if names, shapes or types are not those of this model; nothing is changed then.
        """
        steps = meta.get("optimizer_steps")
        if not isinstance(steps, int) or steps < 0:
            raise CheckpointInvalid("The checkpoint does not say how many optimizer steps it is from.", _WAY_OUT)
        # A parameter that no gradient ever reached has no optimizer state.
        stepped = {name.partition("/")[2] for name in tensors if not name.startswith(f"{MASTER}/")}
        expected = {f"{MASTER}/{name}": master.shape for name, master in self._masters.items()}
        for name in stepped & self._masters.keys():
            shape = self._masters[name].shape
            expected |= {f"{kind}/{name}": torch.Size() if kind == "step" else shape for kind in OPTIMIZER_KINDS}
        if wrong := expected.keys() ^ tensors.keys():
            raise CheckpointInvalid(
                f"The checkpoint and the model differ in {len(wrong)} tensors, first {min(wrong)}.", _WAY_OUT
            )
        for name, shape in expected.items():
            if tensors[name].shape != shape or tensors[name].dtype != torch.float32:
                raise CheckpointInvalid(f"Tensor {name} of the checkpoint has another shape or type.", _WAY_OUT)

        self._optimizer.state.clear()
        for name, master in self._masters.items():
            master.copy_(part_like(tensors[f"{MASTER}/{name}"], master))
            if name in stepped:
                self._optimizer.state[master] = {
                    kind: _state_like(kind, tensors[f"{kind}/{name}"], master) for kind in OPTIMIZER_KINDS
                }
        self._steps = steps
        self._changed()

    @abstractmethod
    def published(self) -> dict[str, torch.Tensor]:
        """The policy as samplers get it: bf16 copies on the CPU by sorted name, tied tensors once."""

    def initial_policy(self) -> AbstractContextManager[None] | None:
        """Inside, the model is the policy that the run began with; None: it can't be made from what is here."""
        return None

    def adapter(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Config and fp32 tensors of a low-rank adapter in peft's format; None: all weights are trained."""
        return None

    def low_rank(self) -> list[AdapterLayer] | None:
        """The adapter layer by layer, as it is merged into the published weights; None: all weights are trained."""
        return None

    @abstractmethod
    def _take_gradients(self) -> None:
        """Move the model's gradients to the masters."""

    @abstractmethod
    def _write(self) -> None:
        """Make of the masters what the model runs."""

    def _changed(self) -> None:
        if self._after_change is not None:
            self._after_change(self._masters.values())
        self._write()


class MasterWeights(AdamMasters):
    """Masters of all parameters of a model, tied ones once.

    On construction the model's parameters are rounded to what is published.

    Args:
        model: The model that runs, in fp32; its parameters are written in place.
        section: Optimizer settings.
        **hooks: See Hooks.
    """

    def __init__(self, model: torch.nn.Module, section: LearnerSection, **hooks: Unpack[Hooks]) -> None:
        self._parameters = dict(sorted(model.named_parameters()))
        masters = {
            name: torch.nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            for name, parameter in self._parameters.items()
        }
        super().__init__(masters, section, **hooks)

    @torch.no_grad()
    def published(self) -> dict[str, torch.Tensor]:
        """bf16 copies on the CPU by sorted name, tied tensors once."""
        return {name: whole(master.to(torch.bfloat16)).cpu() for name, master in self._masters.items()}

    def _take_gradients(self) -> None:
        reach("inside_step")
        for name, parameter in self._parameters.items():
            self._masters[name].grad, parameter.grad = parameter.grad, None

    @torch.no_grad()
    def _write(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._masters[name].to(torch.bfloat16))


def _state_like(kind: str, tensor: torch.Tensor, master: torch.Tensor) -> torch.Tensor:
    return tensor.to(master.device, copy=True) if kind == "step" else part_like(tensor, master)


_WAY_OUT = "Resume with the recipe and model that the checkpoint was made with, or start a new run directory."
