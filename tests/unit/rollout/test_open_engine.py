"""Engines are opened by name, and one that is not installed says where it is to be had."""

from __future__ import annotations

import sys

import pytest

from tersely.errors import ConfigValue, PackageMissing
from tersely.rollout.engines import EngineSettings, open_engine

SETTINGS = EngineSettings(device="cpu", threads=1)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigValue) as caught:
        open_engine("abacus", SETTINGS)
    assert "stub, torch, vllm" in caught.value.way_out


def test_vllm_outside_its_environment_names_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PackageMissing) as caught:
        open_engine("vllm", SETTINGS)
    assert "'vllm'" in caught.value.message
    assert "make setup-vllm" in caught.value.way_out
    assert ".venv-vllm/bin/tersely rollout --trainer HOST:PORT --engine vllm" in caught.value.way_out
