from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from tersely.queue import connect
from tersely.queue.embedded import EmbeddedServer
from tersely.rollout.engines.base import EngineSettings
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.testing.engines import LABEL, random_weights, tiny_config
from tersely.testing.modules import load_module


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


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as server:
        made = connect(server.url)
        yield made
        made.close()


@pytest.fixture
def make_ring(client: redis.Redis, tmp_path: Path) -> Callable[..., Any]:
    """Makes a `ring.Ring` from a source and options."""
    shared = load_module(Path(__file__).with_name("ring.py"))
    return lambda source, **options: shared.Ring(client, tmp_path, source, **options)
