"""Engines for the contract suite: each test runs on every kind that is asked for, on one small model.

The model's heads and vocabulary are of sizes that every engine can compute, and its rotary base is not the default one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tersely.rollout.engines import Engine, EngineSettings, open_engine
from tersely.testing.engines import LABEL, Weights, random_weights
from tersely.trainer.forward import ForwardSettings, completion_logprobs_shared
from tersely.v1 import group_pb2

DEFAULT = ("torch", "mlx", "stub")
WITHOUT_MODEL = ("stub",)
ONE_PER_PROCESS = ("vllm",)  # and slow to make: its weights are loaded again instead
TOLERANCE = {"torch": 1e-5, "mlx": 1e-4, "vllm": 1e-3}
"""Most difference, nats, from the learner's fp32 logprobs."""
DRAFTS = {"torch": (4,)}
"""Numbers of tokens drafted by look-up that a test of sampling is run with, beside none."""
ROWS, TOKENS = 8, 600
_MADE: dict[str, Engine] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises `kind`, and `lookup_tokens` where a test names it.

    A module with WITH_A_MODEL = True is for engines that have one.
    """
    if "kind" not in metafunc.fixturenames:
        return
    kinds: Sequence[str] = metafunc.config.getoption("--engine") or DEFAULT
    if getattr(metafunc.module, "WITH_A_MODEL", False):
        kinds = [kind for kind in kinds if kind not in WITHOUT_MODEL]
    if "lookup_tokens" in metafunc.fixturenames and "lookup_tokens" in metafunc.definition.function.__annotations__:
        cases = [(kind, tokens) for kind in kinds for tokens in (0, *DRAFTS.get(kind, ()))]
        metafunc.parametrize(("kind", "lookup_tokens"), cases)
    else:
        metafunc.parametrize("kind", kinds)


def config() -> LlamaConfig:
    """Two layers of two heads of 32; its initial weights are large, so that no distribution is flat."""
    return LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.15,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )


@dataclass(slots=True)
class Learner:
    """The trainer's own forward pass, fp32, under any weights."""

    models: dict[int, Any] = field(default_factory=dict)

    def model(self, weights: Weights) -> Any:
        """The library's model with these weights."""
        if id(weights) not in self.models:
            model = AutoModelForCausalLM.from_config(config(), dtype=torch.float32)  # type: ignore[no-untyped-call]
            model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
            self.models[id(weights)] = model.eval()
        return self.models[id(weights)]

    @torch.no_grad()
    def logprobs(self, weights: Weights, group: group_pb2.PromptGroup, ids: Sequence[int]) -> list[float]:
        """Teacher-forced logprobs of one completion of a group, at its temperature."""
        found = completion_logprobs_shared(
            self.model(weights),
            torch.tensor(list(group.prompt_token_ids)),
            torch.tensor([list(ids)]),
            [len(ids)],
            ForwardSettings(temperature=group.sampling.temperature),
        )
        values: list[float] = found.logprobs[0].tolist()
        return values


@pytest.fixture
def learner() -> Learner:
    return Learner()


@pytest.fixture
def tolerance(kind: str) -> float:
    return TOLERANCE.get(kind, 1e-3)


@pytest.fixture(scope="session")
def weights() -> Weights:
    """The weights that engines are loaded with, under LABEL."""
    return random_weights(config(), seed=0)


@pytest.fixture(scope="session")
def next_weights() -> Weights:
    """Other weights of the same model."""
    return random_weights(config(), seed=1)


@pytest.fixture
def lookup_tokens() -> int:
    """Tokens drafted by look-up, in tests that do not ask for more."""
    return 0


@pytest.fixture
def make(kind: str, tmp_path: Path, weights: Weights, lookup_tokens: int) -> Iterator[Callable[[], Engine]]:
    """Makes loaded engines; where a process can hold one alone it is the same one, loaded again."""
    config().save_pretrained(tmp_path)
    settings = EngineSettings(
        device="cpu", threads=1, batch_sequences=ROWS, batch_tokens=TOKENS, lookup_tokens=lookup_tokens
    )
    before = torch.get_num_threads()

    def made() -> Engine:
        engine = _MADE[kind] if kind in _MADE else open_engine(kind, settings)
        if kind in ONE_PER_PROCESS:
            _MADE[kind] = engine
        engine.load(tmp_path, LABEL, weights)
        return engine

    yield made
    torch.set_num_threads(before)


@pytest.fixture
def engine(make: Callable[[], Engine]) -> Engine:
    return make()
