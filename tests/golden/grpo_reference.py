"""The losses and advantages of `tersely.grpo` once more: slow loops over plain Python floats, from the papers.

Shares no code with the package and has another build: no tensors, no padding, no mask, each loss a function of its own,
and gradients by the complex step (Squire and Trapp, 1998): for an analytic f, the derivative is Im f(x + ih) / h, which
has no cancellation, so that h = 1e-30 gives it to the last digits.
"""

from __future__ import annotations

import cmath
import statistics
from collections.abc import Callable
from dataclasses import dataclass

STEP = 1e-30
Row = list[float]


@dataclass
class Batch:
    """Ragged rows of token logprobs (nats), one per sample, and what the formulas call them."""

    policy: list[Row]  # pi_theta
    behaviour: list[Row]  # mu, recorded by the sampler
    start: list[Row]  # pi_theta_old, the learner when the batch began
    reference: list[Row]  # pi_ref
    advantages: list[float]
    low: float
    high: float
    correction: str
    cap: float
    beta: float
    longest: int


def number(value: complex) -> float:
    """What comparisons see of a number that may carry a complex step."""
    return value.real


def smaller(a: complex, b: complex) -> complex:
    return a if number(a) <= number(b) else b


def clip(value: complex, low: float, high: float) -> complex:
    if number(value) < low:
        return low
    return high if number(value) > high else value


def denominator(batch: Batch) -> list[Row]:
    return batch.behaviour if batch.correction == "none" else batch.start


def importance_weight(batch: Batch, i: int, t: int) -> float:
    if batch.correction == "none":
        return 1.0
    weight = cmath.exp(batch.start[i][t] - batch.behaviour[i][t]).real
    if batch.correction == "tis":
        return min(weight, batch.cap)
    return weight if weight <= batch.cap else 0.0


def kl(batch: Batch, policy: list[list[complex]], i: int, t: int) -> complex:
    """GRPO's eq. 4: pi_ref / pi_theta - log(pi_ref / pi_theta) - 1."""
    quotient = cmath.exp(batch.reference[i][t]) / cmath.exp(policy[i][t])
    return quotient - cmath.log(quotient) - 1


def clipped(batch: Batch, policy: list[list[complex]], i: int, t: int) -> complex:
    """PPO's surrogate of one token."""
    ratio = cmath.exp(policy[i][t]) / cmath.exp(denominator(batch)[i][t])
    advantage = batch.advantages[i]
    surrogate = smaller(ratio * advantage, clip(ratio, 1 - batch.low, 1 + batch.high) * advantage)
    return surrogate * importance_weight(batch, i, t)


def grpo(batch: Batch, policy: list[list[complex]]) -> complex:
    """arXiv 2402.03300, eq. 3."""
    objective: complex = 0.0
    for i, row in enumerate(policy):
        inner: complex = 0.0
        for t in range(len(row)):
            inner += clipped(batch, policy, i, t) - batch.beta * kl(batch, policy, i, t)
        objective += inner / len(row)
    return -objective / len(policy)


def dapo(batch: Batch, policy: list[list[complex]]) -> complex:
    """arXiv 2503.14476, eq. 8; the KL term, which the paper drops, inside the same sum."""
    objective: complex = 0.0
    for i, row in enumerate(policy):
        for t in range(len(row)):
            objective += clipped(batch, policy, i, t) - batch.beta * kl(batch, policy, i, t)
    return -objective / sum(len(row) for row in policy)


def dr_grpo(batch: Batch, policy: list[list[complex]]) -> complex:
    """arXiv 2503.20783, section 3.2, `masked_sum` over a constant (the generation budget), mean over samples."""
    objective: complex = 0.0
    for i, row in enumerate(policy):
        inner: complex = 0.0
        for t in range(len(row)):
            inner += clipped(batch, policy, i, t) - batch.beta * kl(batch, policy, i, t)
        objective += inner / batch.longest
    return -objective / len(policy)


def gspo(batch: Batch, policy: list[list[complex]]) -> complex:
    """arXiv 2507.18071, eq. 5 to 7: s_i = (pi_theta(y_i) / pi_old(y_i)) ** (1 / |y_i|).

    The paper has neither importance weights of tokens nor KL: both as means over the tokens of the sample.
    """
    objective: complex = 0.0
    for i, row in enumerate(policy):
        ratio = cmath.exp((sum(row) - sum(denominator(batch)[i])) / len(row))
        advantage = batch.advantages[i]
        surrogate = smaller(ratio * advantage, clip(ratio, 1 - batch.low, 1 + batch.high) * advantage)
        weight = sum(importance_weight(batch, i, t) for t in range(len(row))) / len(row)
        penalty = sum(kl(batch, policy, i, t) for t in range(len(row))) / len(row)
        objective += surrogate * weight - batch.beta * penalty
    return -objective / len(policy)


def cispo(batch: Batch, policy: list[list[complex]]) -> complex:
    """arXiv 2506.13585, eq. 4 and 5 without lower bound: sg(min(r, 1 + high)) A log pi_theta, over all tokens."""
    objective: complex = 0.0
    for i, row in enumerate(policy):
        for t in range(len(row)):
            stopped = cmath.exp(batch.policy[i][t] - denominator(batch)[i][t]).real  # sg: the step never gets in
            term = min(stopped, 1 + batch.high) * batch.advantages[i] * row[t] * importance_weight(batch, i, t)
            objective += term - batch.beta * kl(batch, policy, i, t)
    return -objective / sum(len(row) for row in policy)


LOSSES: dict[str, Callable[[Batch, list[list[complex]]], complex]] = {
    "grpo": grpo,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "gspo": gspo,
    "cispo": cispo,
}


def loss_and_gradient(name: str, batch: Batch) -> tuple[float, list[Row]]:
    """Value of a loss and its derivative to each token's logprob."""
    gradient = []
    for i, row in enumerate(batch.policy):
        gradient.append([])
        for t in range(len(row)):
            shifted: list[list[complex]] = [list(other) for other in batch.policy]
            shifted[i][t] += complex(0, STEP)
            gradient[i].append(LOSSES[name](batch, shifted).imag / STEP)
    return LOSSES[name](batch, [list(row) for row in batch.policy]).real, gradient


def normalized(values: Row, divide: bool) -> Row:
    """DeepSeekMath, section 4.1.2: (r - mean(r)) / std(r), with the sample deviation and 1e-4 beside it."""
    middle = statistics.fmean(values)
    if not divide:
        return [value - middle for value in values]
    return [(value - middle) / (statistics.stdev(values) + 1e-4) for value in values]


def advantages(
    rewards: dict[str, list[list[float | None]]], weights: dict[str, float], *, divide: bool, each_first: bool
) -> list[list[float | None]]:
    """Advantages [group][sample] of rewards [name][group][sample]; `each_first` as in GDPO, arXiv 2601.05242."""
    names = [name for name in rewards if weights.get(name, 0.0) != 0.0]
    shape = [len(group) for group in rewards[names[0]]]
    result: list[list[float | None]] = [[None] * size for size in shape]
    sums: dict[tuple[int, int], float] = {}
    for g, size in enumerate(shape):
        inside = [i for i in range(size) if all(rewards[name][g][i] is not None for name in names)]
        if len(inside) < 2:
            continue
        columns = {name: [rewards[name][g][i] or 0.0 for i in inside] for name in names}
        if each_first:
            columns = {name: normalized(column, divide) for name, column in columns.items()}
        totals = [sum(weights[name] * columns[name][k] for name in names) for k in range(len(inside))]
        if not each_first:
            totals = normalized(totals, divide)
        sums |= {(g, i): total for i, total in zip(inside, totals, strict=True)}
    if each_first and sums:
        sums = dict(zip(sums, normalized(list(sums.values()), divide), strict=True))
    for (g, i), value in sums.items():
        result[g][i] = value
    return result
