"""The package's losses and advantages against what TRL's own functions gave, where both mean the same: 1e-6.

`make_trl_values.py` made the values and says how; decision 8 lists where the definitions differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tersely.grpo import LossInputs, advantages, policy_loss

STORED = json.loads(Path(__file__).with_name("trl_values.json").read_text())
LOSSES = STORED["losses"]
LENGTHS = [len(row) for row in LOSSES["policy"]]


def padded(rows: list[list[float]]) -> torch.Tensor:
    table = torch.zeros(len(rows), max(LENGTHS), dtype=torch.float64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return table


def name(case: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in case.items() if key not in ("value", "gradient"))


def test_the_values_cover_every_loss_and_correction_of_the_version_that_is_named() -> None:
    assert STORED["trl"] == "1.16.0"
    assert len({(case["loss"], case["correction"], case["kl_coefficient"] > 0) for case in LOSSES["cases"]}) == 30


@pytest.mark.parametrize("case", LOSSES["cases"], ids=name)
def test_losses_and_gradients_equal_trl(case: dict[str, Any]) -> None:
    inputs = LossInputs(
        logprobs=padded(LOSSES["policy"]).requires_grad_(),
        behaviour_logprobs=padded(LOSSES["behaviour"]),
        mask=torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None],
        advantages=torch.tensor(LOSSES["advantages"], dtype=torch.float64),
        start_logprobs=padded(LOSSES["start"]),
        reference_logprobs=padded(LOSSES["reference"]),
        loss=case["loss"],
        clip_low=LOSSES["clip_low"],
        clip_high=LOSSES["clip_high"],
        correction=case["correction"],
        correction_cap=LOSSES["correction_cap"],
        kl_coefficient=case["kl_coefficient"],
        max_completion_tokens=LOSSES["max_completion_tokens"],
    )
    loss = policy_loss(inputs).loss
    loss.backward()
    assert loss.item() == pytest.approx(case["value"], abs=1e-6)
    torch.testing.assert_close(inputs.logprobs.grad, padded(case["gradient"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", STORED["advantages"]["cases"], ids=name)
def test_advantages_equal_trl(case: dict[str, Any]) -> None:
    tables = torch.tensor(STORED["advantages"]["rewards"], dtype=torch.float64)
    weights = {f"r{index}": weight for index, weight in enumerate(case["weights"])}
    rewards = {reward: tables[index].clone() for index, reward in enumerate(weights)}
    for table in rewards.values():
        table.view(-1)[case["missing"]] = float("nan")
    got = advantages(rewards, weights=weights, scale=case["scale"], combine=case["combine"])
    assert torch.isnan(got).sum().item() == len(case["missing"])
    # TRL keeps a sample that nothing could score, with advantage 0; here it is out.
    want = torch.tensor(case["value"], dtype=torch.float64)
    torch.testing.assert_close(got.nan_to_num(nan=0.0), want, rtol=0, atol=1e-6)
