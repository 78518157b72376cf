from __future__ import annotations

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tersely.errors import ModelInvalid
from tersely.testing.modules import load_module
from tersely.trainer.forward import completion_logprobs_padded, completion_logprobs_shared
from tersely.trainer.probe import choose_forward

_models = load_module(Path(__file__).with_name("models.py"))
make_model, SIZES = _models.make_model, _models.SIZES


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_plain_models_share_the_prompt(architecture: str) -> None:
    model = make_model(architecture)
    assert choose_forward(model, shared_prompt=True) is completion_logprobs_shared
    assert choose_forward(model, shared_prompt=False) is completion_logprobs_padded


def test_models_with_other_state_take_the_padded_way_and_say_so() -> None:
    torch.manual_seed(0)
    mixed = Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])).eval()
    sliding = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)).eval()
    for model in (mixed, sliding):
        with capture_logs() as lines:
            assert choose_forward(model, shared_prompt=True) is completion_logprobs_padded
        assert [line["event"] for line in lines] == ["padded_forward"]


def test_a_model_that_scales_its_logits_is_refused() -> None:
    torch.manual_seed(0)
    model = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.06)).eval()
    with pytest.raises(ModelInvalid, match="logits"):
        choose_forward(model, shared_prompt=True)
