from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersely.rollout.engines.base import EngineSettings
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.testing.engines import LABEL, random_weights, tiny_config


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_config().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def engine(model_folder: Path) -> TorchEngine:
    made = TorchEngine(EngineSettings(device="cpu", threads=1))
    made.load(model_folder, LABEL, random_weights(tiny_config(), seed=0))
    return made


@pytest.fixture
def engine64(model_folder: Path) -> TorchEngine:
    made = TorchEngine(EngineSettings(device="cpu", threads=1, batch_sequences=32), dtype=torch.float64)
    made.load(model_folder, LABEL, random_weights(tiny_config(), seed=0))
    return made
