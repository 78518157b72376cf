"""Low-rank adapters by peft (LoRA, arXiv 2106.09685), trained through the weights that are published.

peft runs base and adapter side by side; samplers run one merged matrix in bf16. Here the learner runs that matrix too:
W = bf16(W0 + scale * B A), scale = alpha / rank, so learner and samplers mean the same weights. The sum is in float64,
so that a worker on another machine that gets A and B alone merges to the same bits. Rounding has no useful derivative
and counts as the identity (straight-through): with G the gradient of W, B gets scale * G A^T and A gets scale * B^T G.
Both are made from a layer's input and output gradient through the rank; G, as large as W, is never formed.

Shape letters: N positions, I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack, cast

import peft
import torch
from peft.tuners.lora.layer import Linear as PeftLinear

from tersely.config.learner import LearnerSection, LoraSection
from tersely.errors import ModelInvalid
from tersely.models.linear import product
from tersely.trainer.masters import AdamMasters, Hooks
from tersely.weights.adapter import AdapterLayer, merge_into

ADAPTER = "default"
_WAY_OUT = "Set learner.lora.targets to names of linear layers of this model, as in its config or model card."


def add_adapters(model: torch.nn.Module, section: LoraSection) -> None:
    """Put adapters beside the target layers; they alone are trainable afterwards, and change nothing yet (B is 0).

    Args:
        model: Causal LM on the CPU, in fp32.
        section: Rank, alpha, targets. A is drawn from a fixed seed.

    Raises:
        ModelInvalid: if no layer has the name of a target, or one is not a plain linear layer inside the decoder.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in section.targets)
    }
    if not found:
        raise ModelInvalid(
            f"No layer of {type(model).__name__} has a name of learner.lora.targets: {', '.join(section.targets)}.",
            _WAY_OUT,
        )
    head = cast(Any, model).get_output_embeddings()
    for name, module in found.items():
        if not isinstance(module, torch.nn.Linear) or module is head:
            raise ModelInvalid(
                f"Layer {name}, named by learner.lora.targets, can't have an adapter: it is"
                f" {'the output head' if module is head else f'of type {type(module).__name__}'}.",
                _WAY_OUT,
            )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        peft.inject_adapter_in_model(_config(section), model, ADAPTER)
    for module in model.modules():
        if isinstance(module, PeftLinear):
            module.__class__ = MergedLinear
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name))


class MergedLinear(PeftLinear):
    """A target layer: the merged weight runs, A and B get the gradient."""

    base_weight: torch.Tensor | None = None
    """[O, I] bf16: W0, once there are masters."""
    adapted = True

    @property
    def factors(self) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        """A [R, I] and B [O, R]."""
        down, up = cast(Any, self.lora_A)[ADAPTER], cast(Any, self.lora_B)[ADAPTER]
        return down.weight, up.weight

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return float(self.scaling[ADAPTER])

    def keep_base(self) -> None:
        """Take the present weight, rounded to bf16, for W0."""
        self.base_weight = self._running.detach().to(torch.bfloat16, copy=True)

    def merge_factors(self) -> None:
        """Make the running weight from W0, A and B."""
        assert self.base_weight is not None
        down_RI, up_OR = self.factors
        merge_into(self._running.data, self.base_weight, down_RI.detach(), up_OR.detach(), self.scale)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Inputs [..., I] -> outputs [..., O]."""
        down_RI, up_OR = self.factors
        weight_OI = self._running
        if not self.adapted and self.base_weight is not None:
            weight_OI = self.base_weight.to(weight_OI.dtype)
        bias_O = cast(Any, self.base_layer).bias
        result: torch.Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            x, down_RI, up_OR, weight_OI.detach(), bias_O, self.scale
        )
        return result

    @property
    def _running(self) -> torch.Tensor:
        return cast(torch.Tensor, cast(Any, self.base_layer).weight)


class AdapterWeights(AdamMasters):
    """fp32 A and B of a model with adapters, with AdamW; nothing else is trained or kept in checkpoints.

    On construction the base weights are rounded to bf16.

    Args:
        model: The model that runs, after `add_adapters`.
        section: Optimizer and adapter settings.
        **hooks: See `Hooks`.
    """

    def __init__(self, model: torch.nn.Module, section: LearnerSection, **hooks: Unpack[Hooks]) -> None:
        assert section.lora is not None
        self._section = section.lora
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, MergedLinear)}
        self._base = {
            name.replace(".base_layer.", "."): parameter
            for name, parameter in model.named_parameters()
            if not _is_adapter(name)
        }
        with torch.no_grad():
            for parameter in self._base.values():
                parameter.copy_(parameter.to(torch.bfloat16))
            for layer in self._layers.values():
                layer.keep_base()
        masters = {
            f"{name}.lora_{letter}.weight": factor
            for name, layer in self._layers.items()
            for letter, factor in zip("AB", layer.factors, strict=True)
        }
        super().__init__(masters, section, **hooks)

    @torch.no_grad()
    def published(self) -> dict[str, torch.Tensor]:
        """Merged weights and all others under the names of the base model, bf16 copies on the CPU, sorted."""
        return {name: self._base[name].to("cpu", torch.bfloat16, copy=True) for name in sorted(self._base)}

    @contextmanager
    def initial_policy(self) -> Iterator[None]:
        """Inside, the model is the one that the run began with."""
        for layer in self._layers.values():
            layer.adapted = False
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.adapted = True

    @torch.no_grad()
    def adapter(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What a folder in peft's format holds.

        Returns:
            The contents of adapter_config.json, and the fp32 tensors of adapter_model.safetensors by name.
        """
        settings: dict[str, Any] = _config(self._section).to_dict()  # type: ignore[no-untyped-call]
        config = {
            key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
            for key, value in settings.items()
        }
        tensors = {f"base_model.model.{name}": master.to("cpu", copy=True) for name, master in self._masters.items()}
        return {**config, "inference_mode": True}, tensors

    @torch.no_grad()
    def low_rank(self) -> list[AdapterLayer]:
        """The adapter layer by layer: CPU copies of A and B under the names of the tensors they change, sorted."""
        layers = []
        for name, layer in sorted(self._layers.items()):
            down_RI, up_OR = (factor.detach().to("cpu", torch.float32, copy=True) for factor in layer.factors)
            layers.append(AdapterLayer(f"{name}.weight", down_RI, up_OR, layer.scale))
        return layers

    def _take_gradients(self) -> None:
        """The model's A and B are the masters: their gradients are where they belong."""

    @torch.no_grad()
    def _write(self) -> None:
        for layer in self._layers.values():
            layer.merge_factors()


def _config(section: LoraSection) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=section.rank,
        lora_alpha=cast(Any, section.alpha),  # an int by its annotation, but only ever divided
        target_modules=list(section.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


class _StraightThrough(torch.autograd.Function):
    """x W^T + bias, whose gradient goes to x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.x_dtype, ctx.scale = x.dtype, scale
        x, weight_OI = x.to(dtype), weight_OI.to(dtype)
        ctx.save_for_backward(x, down_RI, up_OR, weight_OI)
        return product(x, weight_OI, bias_O.to(dtype) if bias_O is not None else None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, down_RI, up_OR, weight_OI = ctx.saved_tensors
        gradient_NO, x_NI = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = product(gradient, weight_OI.T).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        inner_NR = product(gradient_NO, up_OR.to(gradient.dtype).T)
        grad_down_RI = product(inner_NR.T, x_NI.T).to(down_RI.dtype) * ctx.scale
        middle_NR = product(x_NI, down_RI.to(x.dtype))
        grad_up_OR = product(gradient_NO.T, middle_NR.T).to(up_OR.dtype) * ctx.scale
        return grad_x, grad_down_RI, grad_up_OR, None, None, None
