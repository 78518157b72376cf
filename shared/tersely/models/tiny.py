"""A random model of a few hundred kilobytes that behaves like a chat model: for tests and dry runs.

Its tokenizer is trained on text that ships with the package, its weights come from a seed: the same folder, byte for
byte, each time. Random logits would give each of 512 tokens, the stop token too, about the same chance, and every
completion would run into its limit: nothing to learn from. So one hidden dimension is a large constant, which after
RMSNorm acts as a bias, and the row of the stop token in the output head reads it. P(stop) starts near
`INITIAL_STOP_PROBABILITY` at every position, and the bias can be learned like any weight.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

from tersely.models.cache import build_once
from tersely.models.quiet import quiet_transformers

VOCAB_SIZE = 512
HIDDEN_SIZE = 64
INITIAL_STOP_PROBABILITY = 0.025
_FORMAT = 1
_CONSTANT = 4.0
_WEIGHT_STD = 0.08
_HEAD_STD = 0.05
_START, _END = "<|im_start|>", "<|im_end|>"
# transformers' tokenizer for Qwen2 adds this one itself, beyond the vocabulary, where it is missing.
_EXTRA = "<|endoftext|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_text() -> str:
    """The plain English text that the tokenizer is trained on."""
    return resources.files("tersely.models").joinpath("tiny_text.txt").read_text(encoding="utf-8")


def tiny_folder(cache: Path) -> Path:
    """The model named `tiny` in `cache`, made in a second or two the first time."""
    parts = [str(_FORMAT), tiny_text(), *(metadata.version(name) for name in ("torch", "transformers", "tokenizers"))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def build(part: Path) -> None:
        make_tiny_model(part)

    return build_once(cache / f"tiny-{key}", build)


def make_tiny_model(folder: Path, *, architecture: Literal["llama", "qwen2"] = "llama", seed: int = 0) -> Path:
    """Write a random model with tokenizer and chat template.

    Args:
        folder: Made if it does not exist; files of the same names are overwritten.
        architecture: Both have 2 layers, 4 heads, 2 key-value heads, hidden size 64, an untied head, bf16 weights.
        seed: Of the weights; the tokenizer is always the same.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = _make_tokenizer()
        tokenizer.save_pretrained(folder)
        _make_model(architecture, seed, tokenizer.convert_tokens_to_ids(_END)).save_pretrained(folder)
    # The order of keys in what the library writes is not promised.
    for path in folder.glob("*config.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[_START, _END, _EXTRA],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_text().splitlines(), trainer)
    wrapped = quiet_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_START, eos_token=_END, pad_token=_END, model_max_length=4096
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def _make_model(architecture: str, seed: int, stop_id: int) -> Any:
    transformers = quiet_transformers()
    import torch

    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }
    config_class, model_class = kinds[architecture]
    config = config_class(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=stop_id,
        pad_token_id=stop_id,
    )
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 1:
                continue  # norms stay 1, biases 0
            std = {"model.embed_tokens.weight": 1.0, "lm_head.weight": _HEAD_STD}.get(name, _WEIGHT_STD)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        model.model.embed_tokens.weight[:, 0] = _CONSTANT
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[stop_id] = 0.0
        # Size of the constant after the last norm, as the weights above really leave it.
        model.eval()
        ids = torch.arange(VOCAB_SIZE).reshape(8, -1)
        hidden_BSD = model.model(input_ids=ids).last_hidden_state
        logits_BSV = model.lm_head(hidden_BSD)
        others = torch.logsumexp(logits_BSV, -1).mean().item()
        odds = INITIAL_STOP_PROBABILITY / (1 - INITIAL_STOP_PROBABILITY)
        model.lm_head.weight[stop_id, 0] = (others + math.log(odds)) / hidden_BSD[..., 0].mean().item()
    model.to(torch.bfloat16)
    model.generation_config.eos_token_id = stop_id
    model.generation_config.pad_token_id = stop_id
    return model
