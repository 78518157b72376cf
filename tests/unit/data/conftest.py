from __future__ import annotations

from pathlib import Path

import pytest

from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PolicyTokenizer:
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return PolicyTokenizer.from_folder(folder)
