from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tersely.config.judge import JudgeSection


@pytest.mark.parametrize(("given", "used"), [({}, 0.0), ({"rounds": 3}, 0.7), ({"rounds": 3, "temperature": 0.2}, 0.2)])
def test_several_rounds_need_a_temperature(given: dict[str, Any], used: float) -> None:
    assert JudgeSection(**given).used_temperature == used


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"endpoint": "https://api.openai.com/v1"}, "OPENAI_API_KEY"),
        ({"endpoint": "https://api.openai.com.evil.example/v1"}, None),
        ({"endpoint": "http://127.0.0.1:8000/v1"}, None),
        ({"endpoint": "http://127.0.0.1:8000/v1", "api_key_env": "OTHER"}, "OTHER"),
    ],
)
def test_the_key_for_openai_is_for_openai(given: dict[str, Any], name: str | None) -> None:
    assert JudgeSection(**given).used_key_env == name


def test_money_needs_prices() -> None:
    with pytest.raises(ValidationError, match="price_read_per_million"):
        JudgeSection(budget_cost=1.0)
    assert JudgeSection(budget_cost=1.0, price_read_per_million=0, price_written_per_million=2).budget_cost == 1.0


def test_an_endpoint_is_a_url() -> None:
    with pytest.raises(ValidationError, match="http"):
        JudgeSection(endpoint="localhost:8000/v1")
