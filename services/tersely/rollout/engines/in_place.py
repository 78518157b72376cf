"""Filling a model with weights in place: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tersely.errors import EngineFailed

_WAY_OUT = "Give every worker the model folder of the run; the trainer's address is enough for that."


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights over a model's tensors, in the memory they already have.

    Everything is checked before anything is written. Tensors that the model ties may come under any one of their names,
    or under several if they are equal. Narrower floats are widened, which loses nothing.

    Raises:
        EngineFailed: A tensor is missing, unknown, of another shape, or of a dtype that would be rounded.
    """
    own: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    for name, source in matched(own, weights).items():
        own[name].copy_(source)


def matched(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by a model's own names, tied ones once, under their first name.

    Args:
        own: The model's state dict with `keep_vars=True`; meta tensors will do. Tied tensors are one object.
        weights: What is to be put there.

    Raises:
        EngineFailed: A tensor is missing, unknown, of another shape, or of a dtype that would be rounded.
    """
    unknown = sorted(set(weights) - set(own))
    if unknown:
        raise EngineFailed(f"The weights hold {len(unknown)} tensors the model lacks, e.g. {unknown[0]}.", _WAY_OUT)
    tied: dict[int, list[str]] = {}
    for name, tensor in own.items():
        tied.setdefault(id(tensor), []).append(name)
    sources: dict[str, Tensor] = {}
    for names in tied.values():
        given = [name for name in names if name in weights]
        if not given:
            raise EngineFailed(f"The weights lack the tensor {names[0]}.", _WAY_OUT)
        source = weights[given[0]]
        _check(given[0], source, own[names[0]])
        if any(not torch.equal(weights[name], source) for name in given[1:]):
            raise EngineFailed(f"The model ties {' and '.join(given)}, but their weights differ.", _WAY_OUT)
        sources[names[0]] = source
    return sources


def _check(name: str, source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise EngineFailed(f"Tensor {name} has shape {tuple(source.shape)}, not {tuple(target.shape)}.", _WAY_OUT)
    if source.is_floating_point() != target.is_floating_point() or (
        target.device.type == "cpu" and torch.promote_types(source.dtype, target.dtype) != target.dtype
    ):
        raise EngineFailed(f"Tensor {name} is {source.dtype}, which does not fit into {target.dtype}.", _WAY_OUT)
