from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama folder that no test changes."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "qwen2", architecture="qwen2")


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> PolicyTokenizer:
    return PolicyTokenizer.from_folder(tiny)
