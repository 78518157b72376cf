"""A run with checkpoints, to export from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch

from tersely.config import Recipe
from tersely.config.learner import LearnerSection
from tersely.models.load import load_policy
from tersely.models.tiny import make_tiny_model
from tersely.trainer.checkpoint import Keeping, write_checkpoint
from tersely.trainer.export import published_sha256
from tersely.trainer.masters import MasterWeights

STEPS = (2, 4)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The commands set up logging for their process."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-chat")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Base\n")
    return folder


@pytest.fixture(scope="module")
def published(model_folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    """What a run published after two of its steps."""
    found = {}
    for step in STEPS:
        masters = changed_masters(model_folder, step)
        found[step] = masters.published()
    return found


def changed_masters(model_folder: Path, step: int) -> MasterWeights:
    model = load_policy(model_folder)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return MasterWeights(model, LearnerSection())


@pytest.fixture
def run_dir(tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]) -> Path:
    """A run that was stopped after its fourth step of six."""
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = Recipe.model_validate(
        {"run": {"steps": 6}, "model": {"name": str(model_folder)}, "queue": {"url": "redis://secret-host:6379"}}
    )
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"run_id": "r-1"}))
    for step in STEPS:
        masters = changed_masters(model_folder, step)
        tensors, learner = masters.state()
        write_checkpoint(
            folder / "checkpoints",
            step=step,
            policy_version=step,
            weights_sha256=published_sha256(published[step]),
            tensors=tensors,
            learner=learner,
            keeping=Keeping(9),
        )
    return folder


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
