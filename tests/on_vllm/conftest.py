"""One vLLM engine for all tests here: a process holds one at a time. Run by `make test-vllm`, in vLLM's environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaConfig

from tersely.rollout.engines import EngineSettings
from tersely.testing.engines import Weights, random_weights

if TYPE_CHECKING:
    from tersely.rollout.engines.vllm_engine import VllmEngine

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

Model = tuple[Path, Weights]


@pytest.fixture(scope="session")
def engine() -> Iterator[VllmEngine]:
    """The engine, with whatever the test before left in it."""
    from tersely.rollout.engines.vllm_engine import VllmEngine

    before = torch.get_num_threads()
    yield VllmEngine(EngineSettings(device="cpu", threads=1, batch_sequences=8, batch_tokens=2048))
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Model]:
    """Makes a folder with the config of a small Llama, and weights for it; vLLM's CPU kernels take heads from 32 up."""

    def made(seed: int = 0, head_size: int = 32, tied: bool = True) -> Model:
        config = LlamaConfig(
            vocab_size=97,
            hidden_size=2 * head_size,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            initializer_range=0.15,
        )
        folder = tmp_path / f"{head_size}-{tied}"
        config.save_pretrained(folder)
        return folder, random_weights(config, seed)

    return made
