"""A worker whose engine has no model: what it uses instead of torch and transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from tersely.errors import ModelTokenizerMissing
from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.without_model import ShapesOnly, plain_decoder
from tersely.testing.engines import LABEL
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.client import WeightsClient
from tersely.weights.receive import HeldWeights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def test_text_is_that_of_the_policys_tokenizer(folder: Path) -> None:
    tokenizer, decode = PolicyTokenizer.from_folder(folder), plain_decoder(folder)
    ids = tokenizer.encode("The court held that two words suffice, don't they?")
    for row in (ids, [*ids, *tokenizer.stop_token_ids], list(range(tokenizer.vocab_size)), []):
        assert decode(row) == tokenizer.decode(row)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelTokenizerMissing):
        plain_decoder(tmp_path)


def test_fetched_weights_are_checked_by_the_client_and_reduced_to_shapes() -> None:
    class Client:
        def fetch_held(self, want: WeightsLabel, base: WeightsLabel | None = None) -> HeldWeights:
            manifest = checkpoint_pb2.WeightsManifest()
            manifest.tensors.add(name="w", dtype="BF16", shape=[2, 3], offset_bytes=0, length_bytes=12)
            return HeldWeights(want, manifest, bytearray(12))

    fetched = ShapesOnly(cast(WeightsClient, Client())).fetch(LABEL)
    assert {name: tuple(tensor.shape) for name, tensor in fetched.items()} == {"w": (2, 3)}


def test_the_service_with_the_stub_engine_loads_neither_torch_nor_transformers(folder: Path) -> None:
    program = """
import sys
from pathlib import Path
from tersely.rollout import service
from tersely.rollout.engines import EngineSettings, open_engine
engine = open_engine("stub", EngineSettings())
_, decode = service._means_of(engine.capabilities(), None, Path(sys.argv[1]))
assert decode([5, 6]) is not None
heavy = {"torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=100)
