"""Forward and backward of one batch, three ways that give the same gradient, timed in turns in one process.

- `shared`: the learner's way. Each prompt runs once, its completions on the expanded cache.
- `padded`: every row is prompt + completion, eight rows at a time. Linear layers and logits as in `shared`, so that
  the two differ in the prompts alone: their ratio is the figure to quote.
- `plain`: the same rows as a peer forwards them: the model as Transformers made it, `logits_to_keep`, autograd's own
  log-softmax.

Shape letters: B prompts, G completions each, C completion, P prompt, R rows of a micro-batch, N their sum.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from tersely.models.linear import use_fast_linears
from tersely.models.load import load_policy
from tersely.trainer.benching.shapes import Batch, Shape, random_batch
from tersely.trainer.forward import ForwardSettings, completion_logprobs_padded, completion_logprobs_shared

PADDED_ROWS = 8
"""Rows of a padded micro-batch, as the peer's settings have it."""

_WARM_UP = Shape(32, 8, 2, prompts=1)


@dataclass(slots=True)
class Timing:
    """Seconds of one shape, per way in order of the turns, and how far the gradients were apart.

    Attributes:
        seconds: Per way one number a turn.
        differences: ||way - shared|| / ||way|| of the first turn, per way; empty where it was not asked for.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    def ratio(self, way: str) -> float | None:
        """Median over turns of `way` / shared; None if it was not timed."""
        pairs = zip(self.seconds.get(way, ()), self.seconds["shared"], strict=False)
        ratios = [slow / fast for slow, fast in pairs]
        return statistics.median(ratios) if ratios else None


class LearnerBench:
    """One model, and the ways to get the gradient of a batch with it.

    Args:
        model_folder: A model whose cache is plain keys and values.
    """

    def __init__(self, model_folder: Path) -> None:
        self._model = load_policy(model_folder).train()
        self._linears = [module for module in self._model.modules() if type(module) is torch.nn.Linear]
        use_fast_linears(self._model)
        self._fast = [type(module) for module in self._linears]
        self._vocabulary = cast(Any, self._model).get_input_embeddings().weight.shape[0]
        self._ways: dict[str, Callable[[Batch], None]] = {
            "plain": self._plain,
            "padded": self._padded,
            "shared": self._shared,
        }
        for way in self._ways:
            self._time(way, random_batch(_WARM_UP, self._vocabulary))

    def measure(
        self, shape: Shape, ways: Sequence[str], turns: int, *, compare: bool, progress: Callable[[str], None]
    ) -> Timing:
        """Times some ways, each once a turn.

        Args:
            shape: The batch.
            ways: Of `plain`, `padded` and `shared`, in the order of a turn; shared last.
            turns: Times each is measured.
            compare: Also compare the gradients, in the first turn.
            progress: Told of each measurement.
        """
        batch, timing = random_batch(shape, self._vocabulary), Timing({way: [] for way in ways})
        kept: dict[str, list[torch.Tensor]] = {}
        for turn in range(turns):
            for way in ways:
                seconds = self._time(way, batch)
                timing.seconds[way].append(round(seconds, 3))
                progress(f"{shape.name} turn {turn + 1}/{turns}: {way} {seconds:.2f} s")
                if compare and turn == 0:
                    kept[way] = self._take_gradient()
            for way in [way for way in kept if way != "shared"]:
                timing.differences[way] = relative_difference(kept[way], kept["shared"])
            kept.clear()
        self._model.zero_grad()
        return timing

    def _time(self, way: str, batch: Batch) -> float:
        classes = [torch.nn.Linear] * len(self._fast) if way == "plain" else self._fast
        for module, kind in zip(self._linears, classes, strict=True):
            module.__class__ = kind
        self._model.zero_grad()
        began = time.perf_counter()
        self._ways[way](batch)
        return time.perf_counter() - began

    def _take_gradient(self) -> list[torch.Tensor]:
        """The gradient without a copy: the parameters have none afterwards."""
        taken = []
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                taken.append(parameter.grad)
                parameter.grad = None
        return taken

    def _shared(self, batch: Batch) -> None:
        for prompt_P, completion_GC, weight_G in zip(*batch, strict=True):
            lengths = [completion_GC.shape[1]] * completion_GC.shape[0]
            result = completion_logprobs_shared(self._model, prompt_P, completion_GC, lengths, ForwardSettings())
            _loss(result.logprobs, weight_G, batch).backward()  # type: ignore[no-untyped-call]

    def _padded(self, batch: Batch) -> None:
        for prompt_P, completion_GC, weight_G in zip(*batch, strict=True):
            for rows_RC, weight_R in zip(completion_GC.split(PADDED_ROWS), weight_G.split(PADDED_ROWS), strict=True):
                lengths = [rows_RC.shape[1]] * rows_RC.shape[0]
                result = completion_logprobs_padded(self._model, prompt_P, rows_RC, lengths, ForwardSettings())
                _loss(result.logprobs, weight_R, batch).backward()  # type: ignore[no-untyped-call]

    def _plain(self, batch: Batch) -> None:
        prompts, group, columns = batch.completions.shape
        prompt_NP = batch.prompts[:, None].expand(prompts, group, -1).flatten(0, 1)
        completion_NC, weight_N = batch.completions.flatten(0, 1), batch.weights.flatten()
        for start in range(0, len(weight_N), PADDED_ROWS):
            part = slice(start, start + PADDED_ROWS)
            ids = torch.cat([prompt_NP[part], completion_NC[part]], 1)
            output = cast(Any, self._model)(ids, logits_to_keep=columns + 1, use_cache=False)
            logprobs_RCV = torch.log_softmax(output.logits[:, :-1].float(), -1)
            logprobs_RC = logprobs_RCV.gather(-1, completion_NC[part, :, None])[..., 0]
            _loss(logprobs_RC, weight_N[part], batch).backward()  # type: ignore[no-untyped-call]


def relative_difference(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """||reference - other|| / ||reference||, both as one long vector, summed in float64."""
    pairs = list(zip(reference, other, strict=True))
    apart = sum(float((left - right).double().square().sum()) for left, right in pairs)
    whole = sum(float(left.double().square().sum()) for left, _ in pairs)
    return math.sqrt(apart / whole)


def _loss(logprobs_RC: torch.Tensor, weight_R: torch.Tensor, batch: Batch) -> torch.Tensor:
    return -(logprobs_RC.mean(-1) * weight_R).sum() / batch.weights.numel()
