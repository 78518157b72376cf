"""What a plan needs to know of a model, from config.json and the headers of its weight files: nothing is loaded."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersely.errors import ModelInvalid
from tersely.models.quiet import quiet_transformers
from tersely.trainer.probe import why_not_shared

CALIBRATED_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Model types whose decoder layers are those that the estimate of activations was derived from."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A causal language model in numbers.

    Attributes:
        model_type: As config.json says.
        parameters: Weights in all, tied ones once.
        largest: Weights of the largest tensor.
        linear_sizes: Name -> (rows, columns) of every matrix inside the decoder's layers.
        layers, hidden, intermediate, heads, key_value_heads, head_size, vocabulary: Of the config.
        context: Most positions; none: the config does not say.
        tied: Whether the output head is the embedding.
        scores_kept: Whether attention keeps its matrix of scores for the backward pass (eager attention).
        normed_heads: Whether queries and keys are normalised.
        padded_reason: Why the prompt can't be shared; none: it can.
        unlike_full_attention: Kinds of layers that the torch engine can't run, sorted.
    """

    model_type: str
    parameters: int
    largest: int
    linear_sizes: dict[str, tuple[int, int]]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    context: int | None
    tied: bool
    scores_kept: bool
    normed_heads: bool
    padded_reason: str | None
    unlike_full_attention: tuple[str, ...]

    @property
    def decoder_parameters(self) -> int:
        """Weights of the matrices inside the layers: what every position is multiplied with."""
        return sum(rows * columns for rows, columns in self.linear_sizes.values())

    @property
    def attention_width(self) -> int:
        """Width of all queries together."""
        return self.heads * self.head_size

    @property
    def key_value_width(self) -> int:
        """Width of all keys together, which is that of all values."""
        return self.key_value_heads * self.head_size

    def adapter_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Weights of low-rank adapters on the layers that `targets` name."""
        return sum(rank * sum(size) for name, size in self.linear_sizes.items() if is_target(name, targets))

    def adapted_parameters(self, targets: tuple[str, ...]) -> int:
        """Weights of the layers that `targets` name."""
        return sum(size[0] * size[1] for name, size in self.linear_sizes.items() if is_target(name, targets))


def is_target(weight: str, targets: Iterable[str]) -> bool:
    """Whether the layer of a weight, e.g. `model.layers.0.mlp.up_proj.weight`, is named by targets, e.g. `up_proj`."""
    layer = weight.removesuffix(".weight")
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def read_facts(folder: Path) -> ModelFacts:
    """Facts of a checked model folder.

    Raises:
        ModelInvalid: The installed transformers does not know the architecture, or the config lacks a size.
    """
    transformers = quiet_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model_class: Any = transformers.AutoModelForCausalLM._model_mapping[type(config)]
        text: Any = config.get_text_config()
        shapes = _shapes(folder)
        return _facts(text, model_class, shapes)
    except (OSError, ValueError, RecursionError, OverflowError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelInvalid(
            f"The model in {folder} can't be planned with: {reason[:200]}",
            "Use a causal language model that the installed transformers knows.",
        ) from None


def _facts(config: Any, model_class: Any, shapes: dict[str, tuple[int, ...]]) -> ModelFacts:
    tied = bool(getattr(config, "tie_word_embeddings", False))
    if tied:
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith("lm_head.weight")}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return ModelFacts(
        model_type=str(config.model_type),
        parameters=sum(sizes.values()),
        largest=max(sizes.values()),
        linear_sizes={
            name: (shape[0], shape[1])
            for name, shape in shapes.items()
            if len(shape) == 2 and any(part.isdecimal() for part in name.split("."))
        },
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        heads=heads,
        key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=int(config.vocab_size),
        context=getattr(config, "max_position_embeddings", None),
        tied=tied,
        scores_kept=not getattr(model_class, "_supports_sdpa", False),
        normed_heads=any(".q_norm." in name for name in shapes),
        padded_reason=why_not_shared(model_class, config),
        unlike_full_attention=tuple(sorted(kinds - {"full_attention"})),
    )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, from the headers of the safetensors files."""
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("model-*.safetensors"))
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes
