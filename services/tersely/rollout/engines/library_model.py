"""Any causal LM of transformers with plain full attention, through the library's own forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from tersely.errors import EngineFailed
from tersely.models.linear import use_fast_linears
from tersely.rollout.engines.attention import Attend
from tersely.rollout.engines.in_place import fill
from tersely.rollout.engines.kv_cache import CacheShape
from tersely.rollout.engines.linear import use_few_rows_linear

_NAME = "tersely_rows"


def _attention(
    module: Any, query_1HND: Tensor, key_1KND: Tensor, value_1KND: Tensor, mask: Any, **settings: Any
) -> tuple[Tensor, None]:
    attend: Attend = settings["attend"]
    keys_values_N2KD = torch.stack((key_1KND[0], value_1KND[0])).permute(2, 0, 1, 3)
    scale = settings.get("scaling") or query_1HND.shape[-1] ** -0.5
    query_NHD = query_1HND[0].transpose(0, 1)
    out_NZ = attend(module.layer_idx, query_NHD, keys_values_N2KD, scale)
    return out_NZ.view(1, *query_NHD.shape), None


AttentionInterface.register(_NAME, _attention)


class LibraryModel:
    """The model of a folder's config.json, not yet filled.

    Args:
        model_folder: Holds config.json.
        dtype: Of the arithmetic.
        device: Where it runs.

    Raises:
        EngineFailed: The config can't be used, or not all layers have full attention.
    """

    def __init__(self, model_folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        try:
            config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
            with no_init_weights():
                model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_NAME)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise EngineFailed(f"No model fits {model_folder}: {error}", "Check the run's model.") from error
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise EngineFailed(
                f"The torch engine needs full attention in all layers; {config.model_type} has {sorted(kinds)}.",
                "Use a Llama- or Qwen2-like model.",
            )
        model.tie_weights()
        self.module: Any = model.eval().requires_grad_(False).to(device)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.longest: int | None = getattr(config, "max_position_embeddings", None)
        self.shape = CacheShape(config.num_hidden_layers, heads, head_size, dtype, device)

    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Copies weights into place, all or none; raises EngineFailed if they do not fit."""
        fill(self.module, weights)

    def use_fast_products(self) -> None:
        """Makes its linear layers fast for few rows; for a model that stays."""
        if self.shape.device.type == "cpu" and not use_fast_linears(self.module):
            use_few_rows_linear(self.module)

    def logits(self, ids_N: Tensor, positions_N: Tensor, attend: Attend, last_only: bool = False) -> Tensor:
        """Next-token logits after each token fed, tokens x vocabulary; or after the last one alone."""
        output = self.module(
            input_ids=ids_N[None],
            position_ids=positions_N[None],
            use_cache=False,
            logits_to_keep=int(last_only),
            attend=attend,
        )
        logits_NV: Tensor = output.logits[0]
        return logits_NV

    def own_logits(self, ids_N: Tensor) -> Tensor:
        """Logits of one text by the library alone, with its own attention."""
        self.module.set_attn_implementation("sdpa")
        try:
            logits_NV: Tensor = self.module(input_ids=ids_N[None], use_cache=False).logits[0]
        finally:
            self.module.set_attn_implementation(_NAME)
        return logits_NV
