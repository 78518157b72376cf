"""Embeddings are the model's mean over tokens; a value never depends on the batch. A model made here, no network."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tersely.errors import PackageMissing, RewardFailed
from tersely.scorer.registry import build_reward
from tersely.scorer.rewards import embedding
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.embedding import EmbeddingReward

WORDS = ["the", "model", "paper", "shows", "a", "result", "dog", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights in the layout of all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = transformers.BertTokenizerFast(vocab=dict(zip(vocabulary, range(len(vocabulary)), strict=True)))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=300,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def reward(folder: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingReward:
    monkeypatch.setattr(embedding, "minilm_folder", lambda: folder)
    return EmbeddingReward(against="reference")


def by_hand(folder: Path, text: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt")).last_hidden_state
    return torch.nn.functional.normalize(states[0].mean(0), dim=0)


def test_values_are_cosines_of_means_over_tokens(reward: EmbeddingReward, folder: Path) -> None:
    pairs = [("the model shows a result", "a paper"), ("dog", "cat cat"), ("the " * 400, "dog " * 400)]
    values = reward.score([RewardInput(text=text, reference=reference) for text, reference in pairs])
    for (text, reference), value in zip(pairs, values, strict=True):
        expected = float(by_hand(folder, text) @ by_hand(folder, reference))
        assert value == pytest.approx(expected, abs=1e-5)
    assert reward.score([RewardInput(text="a dog", reference="a dog")])[0] == pytest.approx(1.0, abs=1e-6)


def test_a_value_is_the_same_alone_and_in_a_batch_and_after_forgetting(reward: EmbeddingReward, folder: Path) -> None:
    batch = [RewardInput(text=" ".join(WORDS[: n + 1]), reference="the paper shows " * n + "a cat") for n in range(8)]
    together = reward.score(batch)
    fresh = EmbeddingReward(against="reference")
    assert together == [fresh.score([item])[0] for item in reversed(batch)][::-1]


def test_it_compares_with_the_source_unless_told_otherwise(folder: Path, reward: EmbeddingReward) -> None:
    item = RewardInput(text="a dog", document="a dog", reference="the paper")
    against_source = EmbeddingReward()
    assert against_source.score([item])[0] == pytest.approx(1.0, abs=1e-6)
    assert reward.score([item])[0] != pytest.approx(1.0, abs=1e-3)
    assert against_source.absent_reason == "no source text"


def test_a_blank_text_to_compare_with_is_absent_and_a_blank_summary_zero(reward: EmbeddingReward) -> None:
    assert reward.score([RewardInput(text="a dog", reference=" \n"), RewardInput(text=" ", reference="a")]) == [None, 0]


def test_a_model_of_ones_own_is_taken_from_its_folder(folder: Path) -> None:
    own = EmbeddingReward(against="reference", model=str(folder))
    assert own.score([RewardInput(text="a dog", reference="a cat")])[0] is not None
    assert math.isfinite(own.score([RewardInput(text="a dog", reference="a cat")])[0] or math.nan)


def test_a_folder_without_a_model_is_refused_by_its_option(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RewardFailed, match=r"rewards\.embedding\.model"):
        build_reward("embedding", {"model": str(tmp_path)})


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(PackageMissing, match="sentence_transformers") as caught:
        build_reward("embedding")
    assert "tersely[embedding]" in str(caught.value.way_out)
