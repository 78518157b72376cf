"""Learners of small random models, and groups for them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import tersely.trainer.learner as learner_module
import tersely.trainer.reference as reference_module
from tersely.config.learner import LearnerSection
from tersely.testing.modules import load_module
from tersely.trainer.groups import TrainingGroup
from tersely.trainer.learner import Learner
from tersely.types import GroupId

_models = load_module(Path(__file__).with_name("models.py"))
make_model, VOCABULARY = _models.make_model, _models.VOCABULARY

STOP = 2
LIMIT = 16


def make_learner(
    monkeypatch: pytest.MonkeyPatch, architecture: str = "llama", *, weights=None, stops=(STOP,), **settings
) -> Learner:
    loaded = []

    def load(_: Path) -> torch.nn.Module:
        loaded.append(architecture)
        return make_model(architecture)

    monkeypatch.setattr(learner_module, "load_policy", load)
    monkeypatch.setattr(reference_module, "load_policy", load)
    learner = Learner(
        Path("unused"),
        LearnerSection(device="cpu", threads=1, **{"learning_rate": 1e-3, **settings}),
        temperature=0.8,
        reward_weights=weights or (lambda step: {"length": 1.0}),
        total_steps=10,
        max_completion_tokens=LIMIT,
        stop_token_ids=stops,
    )
    learner.models_loaded = len(loaded)
    return learner


def make_group(seed: int, *, stops: bool = False, lengths=None) -> TrainingGroup:
    """Four completions of 1 to 8 tokens; with `stops`, each ends with the stop token."""
    rng = random.Random(seed)
    completions = tuple(
        tuple(rng.randrange(3, VOCABULARY) for _ in range(length)) + (STOP,) * stops
        for length in lengths or [rng.randrange(1, 9) for _ in range(4)]
    )
    return TrainingGroup(
        group_id=GroupId(f"group-{seed}"),
        prompt_ids=tuple(rng.randrange(3, VOCABULARY) for _ in range(6)),
        completion_ids=completions,
        behaviour_logprobs=tuple(tuple(-4.0 - rng.random() for _ in ids) for ids in completions),
        rewards={
            "length": tuple(rng.random() for _ in completions),
            "rouge_l": tuple(rng.random() for _ in completions),
        },
    )


def masters_of(learner: Learner) -> dict[str, torch.Tensor]:
    tensors, _ = learner.state()
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("master/")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
