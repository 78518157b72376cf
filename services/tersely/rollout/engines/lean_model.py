"""A forward pass of Llama- and Qwen2-like models that does little besides its matrix products.

Same arithmetic as the library's; queries, keys and values are one product, and so are gate and up. Weights are laid
out for few rows and never change: other weights are another `LeanWeights`, made while the old ones still serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tersely.rollout.engines.attention import Attend
from tersely.rollout.engines.in_place import matched
from tersely.rollout.engines.kv_cache import CacheShape
from tersely.rollout.engines.library_model import LibraryModel
from tersely.rollout.engines.linear import LinearMap, make_linear

_TYPES = {"llama", "qwen2"}
_ROTARY_TYPES = {"default", "linear", "llama3", "yarn"}
"""Those whose angles depend on the position alone."""


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    query_key_value: LinearMap
    output: LinearMap
    mlp_norm: Tensor
    gate_up: LinearMap
    down: LinearMap


@dataclass(frozen=True, slots=True)
class LeanWeights:
    """All weights of a model, as the forward pass wants them."""

    embedding: Tensor
    layers: tuple[_Layer, ...]
    norm: Tensor
    head: LinearMap


def is_lean(model: LibraryModel) -> bool:
    """Whether `LeanModel` can stand for a model; what it computes must still be compared."""
    config = model.module.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in _TYPES
        and getattr(config, "hidden_act", None) == "silu"
        and rope.get("rope_type", "default") in _ROTARY_TYPES
    )


class LeanModel:
    """Takes the place of a `LibraryModel` of the same config.

    Args:
        model: Gives config, names, shapes and rotary angles; its weights are not kept.
    """

    def __init__(self, model: LibraryModel) -> None:
        config = model.module.config
        self.shape: CacheShape = model.shape
        self.longest = int(config.max_position_embeddings)
        self._heads = int(config.num_attention_heads)
        self._eps = float(config.rms_norm_eps)
        self._scale = self.shape.head_size**-0.5
        state: dict[str, Tensor] = dict(model.module.state_dict(keep_vars=True))
        # Shape, dtype and device of each tensor, and which are one, without the memory.
        like = {id(t): torch.empty((), dtype=t.dtype, device=t.device).expand(t.shape) for t in state.values()}
        self._names = {name: like[id(tensor)] for name, tensor in state.items()}
        self._cos_LD, self._sin_LD = self._angles(model.module.model.rotary_emb, self.longest)
        self._weights: LeanWeights | None = None

    def _angles(self, rotary: Any, positions: int) -> tuple[Tensor, Tensor]:
        shape = self.shape
        like = torch.empty(0, dtype=shape.dtype, device=shape.device)
        cos_1LD, sin_1LD = rotary(like, torch.arange(positions, device=shape.device)[None])
        sin_LD = sin_1LD[0].clone()
        # With the sign here, the rotation needs no negated copy.
        sin_LD[:, : shape.head_size // 2].neg_()
        return cos_1LD[0].contiguous(), sin_LD

    @torch.no_grad()
    def make(self, weights: Mapping[str, Tensor]) -> LeanWeights:
        """Lays weights out, in memory of their own; touches nothing that serves, so any thread may call it.

        Raises:
            EngineFailed: A tensor is missing, unknown, of another shape, or of a dtype that would be rounded.
        """
        found = matched(self._names, weights)
        shape = self.shape

        def take(*names: str) -> Tensor:
            parts = [found[name].to(shape.device, shape.dtype) for name in names]
            return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

        def linear(prefix: str, *names: str) -> LinearMap:
            biases = [f"{prefix}.{name}.bias" for name in names]
            bias = take(*biases) if all(name in found for name in biases) else None
            return make_linear(take(*(f"{prefix}.{name}.weight" for name in names)), bias)

        layers = []
        for index in range(shape.layers):
            at = f"model.layers.{index}"
            layers.append(
                _Layer(
                    attention_norm=take(f"{at}.input_layernorm.weight"),
                    query_key_value=linear(f"{at}.self_attn", "q_proj", "k_proj", "v_proj"),
                    output=linear(f"{at}.self_attn", "o_proj"),
                    mlp_norm=take(f"{at}.post_attention_layernorm.weight"),
                    gate_up=linear(f"{at}.mlp", "gate_proj", "up_proj"),
                    down=linear(f"{at}.mlp", "down_proj"),
                )
            )
        embedding = "model.embed_tokens.weight"
        head = "lm_head.weight" if "lm_head.weight" in found else embedding
        # Looked up in the dtype of the wire: widening a few rows costs less than holding all of them wide.
        kept = found[embedding].to(shape.device, copy=True)
        return LeanWeights(kept, tuple(layers), take("model.norm.weight"), make_linear(take(head), None))

    def use(self, weights: LeanWeights) -> None:
        """Computes with these from here on."""
        self._weights = weights

    def logits(self, ids_N: Tensor, positions_N: Tensor, attend: Attend, last_only: bool = False) -> Tensor:
        """Next-token logits after each token fed, tokens x vocabulary; or after the last one alone."""
        weights, shape = self._weights, self.shape
        assert weights is not None
        cos_N1D = self._cos_LD.index_select(0, positions_N)[:, None]
        sin_N1D = self._sin_LD.index_select(0, positions_N)[:, None]
        turned, half = self._heads + shape.heads, shape.head_size // 2
        x_NE = functional.embedding(ids_N, weights.embedding).to(shape.dtype)
        for index, layer in enumerate(weights.layers):
            normed_NE = self._norm(x_NE, layer.attention_norm)
            heads_NJD = layer.query_key_value(normed_NE).view(len(ids_N), turned + shape.heads, shape.head_size)
            rotated_NJD = heads_NJD[:, :turned]
            swapped_NJD = torch.cat((rotated_NJD[..., half:], rotated_NJD[..., :half]), dim=-1)
            rotated_NJD.copy_((rotated_NJD * cos_N1D).addcmul_(swapped_NJD, sin_N1D))
            keys_values_N2KD = heads_NJD[:, self._heads :].view(-1, 2, shape.heads, shape.head_size)
            mixed_NZ = attend(index, heads_NJD[:, : self._heads], keys_values_N2KD, self._scale)
            x_NE = layer.output(mixed_NZ).add_(x_NE)
            gate_NF, up_NF = layer.gate_up(self._norm(x_NE, layer.mlp_norm)).chunk(2, dim=-1)
            x_NE = layer.down(functional.silu(gate_NF).mul_(up_NF)).add_(x_NE)
        if last_only:
            x_NE = x_NE[-1:]
        return weights.head(self._norm(x_NE, weights.norm))

    def _norm(self, x_NE: Tensor, weight_E: Tensor) -> Tensor:
        return functional.rms_norm(x_NE, weight_E.shape, weight_E, self._eps)
