from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tersely.rollout.engines.base import EngineSettings
from tersely.rollout.engines.lookup import Drafter, PromptIndex
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.testing.engines import LABEL, group, random_weights, run, tiny_config

PROMPT = [4, 8, 15, 16, 23, 42, 4, 8, 15, 16, 23, 42, 4, 8]
GROUPS = [
    group(PROMPT, size=4, limit=40, seed=1, greedy=3, stop=(), name="greedy"),
    group(PROMPT[:7], size=3, limit=21, seed=2, name="sampled", temperature=0.3),
    group([9, 9, 9, 9], size=2, limit=30, seed=3, name="repeated", greedy=1),
]


def engine_of(folder: Path, lookup: int, dtype: torch.dtype = torch.float64, vocab: int = 97) -> TorchEngine:
    config = tiny_config(vocab)
    config.save_pretrained(folder)
    engine = TorchEngine(EngineSettings("cpu", 1, batch_sequences=32, lookup_tokens=lookup), dtype)
    engine.load(folder, LABEL, random_weights(config, seed=0))
    return engine


@pytest.mark.parametrize("most", [1, 3, 8])
def test_lookup_changes_no_token_and_no_logprob(tmp_path: Path, most: int) -> None:
    plain = run(engine_of(tmp_path, 0), *GROUPS)
    engine = engine_of(tmp_path, most)
    guessed = run(engine, *GROUPS)
    assert 0 < engine.tokens_accepted <= engine.tokens_drafted
    for name, completions in plain.items():
        assert [ids for ids, _ in guessed[name]] == [ids for ids, _ in completions]
        for (_, left), (_, right) in zip(guessed[name], completions, strict=True):
            assert torch.allclose(torch.tensor(left), torch.tensor(right), atol=1e-6)


def test_a_bit_exact_group_is_bit_equal_with_lookup_too(tmp_path: Path) -> None:
    exact = group(PROMPT, size=4, limit=90, greedy=3, temperature=0.2, exact=True, stop=(), name="exact")
    engine = engine_of(tmp_path, 4, torch.float32)
    alone = run(engine, exact)["exact"]
    assert engine.tokens_accepted > 0
    assert run(engine, GROUPS[1], exact, GROUPS[0])["exact"] == alone
    assert run(engine_of(tmp_path, 4, torch.float32), exact)["exact"] == alone


@pytest.mark.parametrize("lookup", [0, 3])
def test_pairs_of_tokens_come_as_often_as_the_model_says(tmp_path: Path, lookup: int) -> None:
    vocab, n, temperature = 7, 3000, 1.5
    prompt = [1, 2, 3, 4, 1, 2, 5, 6, 1, 2]
    engine = engine_of(tmp_path, lookup, torch.float32, vocab)
    asked = group(prompt, size=n, limit=2, temperature=temperature, stop=())
    pairs = Counter((ids[0], ids[1]) for ids, _ in run(engine, asked)["g"])
    # The last token that may come is never guessed: with three, the second is.
    if lookup:
        asked.sampling.max_completion_tokens = 3
        pairs = Counter((ids[0], ids[1]) for ids, _ in run(engine, asked)["g"])
        assert engine.tokens_drafted > 0
    config = tiny_config(vocab)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    model.load_state_dict(random_weights(config, seed=0, dtype=torch.float64), strict=False)
    with torch.no_grad():
        contexts = torch.tensor([[*prompt, first] for first in range(vocab)])
        logprobs = torch.log_softmax(model(contexts).logits[:, -2:] / temperature, dim=-1)
    expected = (logprobs[0, 0].exp()[:, None] * logprobs[:, 1].exp() * n).flatten()
    counts = torch.tensor([float(pairs[first, second]) for first in range(vocab) for second in range(vocab)])
    often = expected >= 5
    cells = torch.cat((expected[often], expected[~often].sum()[None]))
    seen = torch.cat((counts[often], counts[~often].sum()[None]))
    chi_square = float(((seen - cells) ** 2 / cells.clamp(min=1e-9)).sum())
    # Mean plus five standard deviations of chi-square; at least four degrees of freedom are left to see.
    freedom = len(cells) - 1
    assert freedom >= 4
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_what_followed_last_time_is_the_guess() -> None:
    drafter = Drafter(PromptIndex([1, 2, 3, 4, 5, 1, 2]))
    assert drafter.draft(2) == [3, 4]
    assert drafter.draft(0) == []
    drafter.add(9)
    assert drafter.draft(2) == []
    for token in (7, 1, 2):
        drafter.add(token)
    assert drafter.draft(1) == [9]


def test_more_is_guessed_while_the_guesses_are_right() -> None:
    drafter = Drafter(PromptIndex([*range(1, 40), 1, 2]))
    assert len(drafter.draft(16)) == 2
    drafter.judge(2, 2)
    assert len(drafter.draft(16)) == 4
    drafter.judge(4, 4)
    assert len(drafter.draft(16)) == 8
    drafter.judge(8, 0)
    assert len(drafter.draft(16)) == 1
