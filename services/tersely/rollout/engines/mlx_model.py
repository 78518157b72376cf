"""A model of mlx-lm from a Hugging Face config, and published weights in it: all of them, or none."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import MODEL_REMAPPING
from torch import Tensor
from transformers import AutoConfig

from tersely.errors import ConfigValue, EngineFailed

_WAY_OUT = "Give every worker the model folder of the run; the trainer's address is enough for that."
_OTHER_ENGINE = "Use the torch engine for this model, or a Llama- or Qwen2-like model."
_PLAIN = {torch.float32: mx.float32, torch.float16: mx.float16}


def choose_device(wanted: str) -> mx.Device:
    """The device by the recipe's name: `auto` takes Metal where it is, else the CPU.

    Raises:
        ConfigValue: MLX has no such device here.
    """
    has_gpu = mx.is_available(mx.gpu)
    if wanted == "cpu" or (wanted == "auto" and not has_gpu):
        return mx.Device(mx.cpu)
    if wanted in ("auto", "mps") and has_gpu:
        return mx.Device(mx.gpu)
    raise ConfigValue(f"rollout.device is {wanted}, which MLX does not find here.", "Set it to auto or to cpu.")


def build_model(model_folder: Path) -> Any:
    """The model that config.json describes, not yet filled.

    Raises:
        EngineFailed: mlx-lm has no such model, or not with full attention in every layer.
    """
    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(model_folder, trust_remote_code=False).to_dict()
        module = _module_of(config)
        model = module.Model(module.ModelArgs.from_dict(_for_mlx(config)))
    except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise EngineFailed(f"mlx-lm can't build the model of {model_folder}: {error}", _OTHER_ENGINE) from error
    if any(type(layer) is not KVCache for layer in make_prompt_cache(model)):
        raise EngineFailed("The MLX engine needs full attention in all layers.", _OTHER_ENGINE)
    model.eval()
    return model


def _module_of(config: Mapping[str, Any]) -> Any:
    kind = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    if not re.fullmatch(r"[a-z0-9_]+", kind):
        raise ValueError(f"{kind!r} is no model type")
    if config.get("quantization_config"):
        raise ValueError("quantized models can't take published weights")
    if set(config.get("layer_types") or ["full_attention"]) != {"full_attention"}:
        raise ValueError(f"layers of the kinds {sorted(set(config['layer_types']))}; only full_attention is known")
    return importlib.import_module(f"mlx_lm.models.{kind}")


def _for_mlx(config: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers 5 keeps the rotary settings in one dict, which mlx-lm 0.32 passes over for its defaults."""
    rotary = dict(config.get("rope_parameters") or {})
    if any(isinstance(value, dict) for value in rotary.values()):
        raise ValueError("rotary settings that differ between layers")
    given = {key: value for key, value in config.items() if value is not None and key != "rope_scaling"}
    for name in ("rope_theta", "partial_rotary_factor"):
        if rotary.get(name) is not None:
            given[name] = rotary.pop(name)
    if rotary.get("rope_type", "default") != "default":
        given["rope_scaling"] = rotary
    return given


def fill(model: Any, weights: Mapping[str, Tensor], dtype: mx.Dtype) -> None:
    """Puts weights in place under Hugging Face's names; all are converted and checked before anything is replaced.

    Args:
        model: Made by `build_model`.
        weights: Tensors on the CPU; tied ones under one name, or under both if they are equal.
        dtype: What the model computes in. float32 takes only what it holds without rounding.

    Raises:
        EngineFailed: A tensor is missing, unknown, of another shape, or of a dtype that would be rounded.
    """
    head, embedding = weights.get("lm_head.weight"), weights.get("model.embed_tokens.weight")
    tied = getattr(model.args, "tie_word_embeddings", False)
    if tied and head is not None and embedding is not None and not torch.equal(head, embedding):
        raise EngineFailed("The model ties its head to the embedding, but their weights differ.", _WAY_OUT)
    arrays = {name: _array(name, tensor, dtype) for name, tensor in weights.items()}
    arrays = model.sanitize(arrays) if hasattr(model, "sanitize") else arrays
    mx.eval(arrays)
    try:
        model.load_weights(list(arrays.items()), strict=True)
    except ValueError as error:
        message = " ".join(str(error).split())
        raise EngineFailed(f"The weights do not fit the model: {message[:400]}", _WAY_OUT) from error


def _array(name: str, tensor: Tensor, dtype: mx.Dtype) -> mx.array:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        # numpy has no bfloat16: the bits go over as integers.
        return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16).astype(dtype)
    if tensor.dtype not in _PLAIN:
        raise EngineFailed(f"Tensor {name} is {tensor.dtype}, which does not fit into {dtype}.", _WAY_OUT)
    return mx.array(tensor.numpy()).astype(dtype)


def token_bytes(model: Any) -> int:
    """Bytes of keys and values that one token takes in all layers together, by a token run through the model."""
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=cache))
    pairs = [layer.keys_and_values() for layer in cache]
    return sum(array.nbytes for pair in pairs for array in pair)
