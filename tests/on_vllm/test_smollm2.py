"""vLLM samples a real model, whose output head is tied to its embeddings, as the learner would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.engines import generate
from tersely.testing.engines import LABEL, Weights, group
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2

if TYPE_CHECKING:
    from tersely.rollout.engines.vllm_engine import VllmEngine

NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
TOLERANCE = 1e-3
TEXT = "Summarise in one short sentence: the committee met on Tuesday and put off its decision about the new bridge. "


@torch.no_grad()
def learners(model: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> list[float]:
    """Teacher-forced logprobs of ids after the prompt, by the library's own fp32 forward pass."""
    whole = torch.tensor([[*prompt, *ids]])
    logprobs = torch.log_softmax(model(whole).logits[0, len(prompt) - 1 : -1] / temperature, -1)
    return logprobs.gather(1, torch.tensor(list(ids))[:, None])[:, 0].tolist()


def perturbed(weights: Weights) -> Weights:
    """Other weights nearby, the embeddings too."""
    torch.manual_seed(0)
    return {
        name: (tensor.float() + 0.02 * tensor.float().std() * torch.randn(tensor.shape)).to(tensor.dtype)
        for name, tensor in weights.items()
    }


def test_logprobs_are_the_learners_before_and_after_swaps_with_the_stop_token(engine: VllmEngine) -> None:
    folder = locate_model("smollm2-135m")
    weights = load_file(folder / "model.safetensors")
    tokenizer = PolicyTokenizer.from_folder(folder)
    prompt = tokenizer.encode_chat([{"role": "user", "content": TEXT * 3}])
    stop = tuple(tokenizer.stop_token_ids)
    asked = group(prompt, size=6, limit=24, temperature=0.8, greedy=1, stop=stop)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine.load(folder, LABEL, weights)
    stopped = 0
    for label, held in ((LABEL, weights), (NEXT, perturbed(weights)), (LABEL, weights)):
        if engine.label != label:
            engine.swap(label, held)
        model.load_state_dict({name: tensor.float() for name, tensor in held.items()}, strict=False)
        model.tie_weights()
        assert engine.score(prompt) == pytest.approx(learners(model, prompt[:1], prompt[1:], 1.0), abs=TOLERANCE)
        (done,) = generate(engine, [asked])
        for completion in done.completions:
            ids = list(completion.token_ids)
            assert list(completion.behaviour_logprobs) == pytest.approx(
                learners(model, prompt, ids, 0.8), abs=TOLERANCE
            )
            stopped += completion.finish_reason == common_pb2.FINISH_REASON_STOP and ids[-1] in stop
    assert stopped > 0
