"""One token of one sample from MLX logits: inverse CDF at the seeded uniform number, or the likeliest."""

from __future__ import annotations

from collections import deque

import mlx.core as mx

from tersely.grpo.seeds import uniform


class RowSampler:
    """A sampler as mlx-lm's BatchGenerator takes one per sequence; it is called once per position, one ahead.

    Nothing is computed when it is called: it extends MLX's graph, and keeps the logprob of each drawn token until
    `next_logprob` hands it on. Same rule as the torch engine's: the CDF is summed over the vocabulary in order of ids,
    and the token is the first whose CDF exceeds the uniform number, so one with probability 0 is never drawn.

    Args:
        temperature: Divides the logits.
        seed: Sampling seed of the group; none takes the likeliest token.
        sample_index: The sample's place in the group.
        position: Position of the first token it draws.
        wide: Sum the CDF in float64, which Metal does not have.
    """

    def __init__(self, temperature: float, seed: int | None, sample_index: int, position: int, wide: bool) -> None:
        self._temperature, self._seed, self._sample_index = temperature, seed, sample_index
        self._position = position
        self._sums = mx.float64 if wide else mx.float32
        self._drawn: deque[mx.array] = deque()

    def __call__(self, logprobs_1V: mx.array) -> mx.array:
        """Draws one id, shape [1], from the logprobs of the model, shape [1, V], which no temperature divided yet."""
        scaled_1V = logprobs_1V.astype(mx.float32) / self._temperature
        scaled_1V = scaled_1V - mx.logsumexp(scaled_1V, axis=-1, keepdims=True)
        if self._seed is None:
            id_1 = mx.argmax(scaled_1V, axis=-1)
        else:
            cdf_1V = mx.cumsum(mx.exp(scaled_1V.astype(self._sums)), axis=-1)
            total_11 = cdf_1V[:, -1:]
            at_11 = mx.array(uniform(self._seed, self._sample_index, self._position), self._sums) * total_11
            # Rounding may put u * total on total itself: stay on the last token that has any probability.
            id_1 = mx.minimum((cdf_1V <= at_11).sum(axis=-1), (cdf_1V < total_11).sum(axis=-1))
        id_1 = id_1.astype(mx.uint32)
        self._position += 1
        self._drawn.append(mx.take_along_axis(scaled_1V, id_1[:, None], axis=-1))
        return id_1

    def next_logprob(self) -> mx.array:
        """Log softmax(logits / temperature) at the oldest drawn id that was not asked for yet; shape [1, 1], fp32."""
        return self._drawn.popleft()
