"""Whether a folder is a model that tersely can use, found out in milliseconds and without loading it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tersely.errors import ModelInvalid, ModelMissing, ModelTokenizerMissing

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")
_MAX_HEADER_BYTES = 100_000_000
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


def check_model_folder(folder: Path) -> Path:
    """Check that config, whole safetensors weights, tokenizer and chat template are there.

    Returns:
        `folder`, unchanged.

    Raises:
        ModelMissing: There is no such folder.
        ModelInvalid: Config or weights are missing, damaged or not in safetensors format.
        ModelTokenizerMissing: No tokenizer file, or no chat template.
    """
    if not folder.is_dir():
        raise ModelMissing(f"There is no model folder {folder}.", "Set model.name to a folder that exists.")
    _read_json(folder / "config.json", folder)
    for path in _weight_files(folder):
        _check_safetensors(path)
    _check_tokenizer(folder)
    return folder


def _read_json(path: Path, folder: Path) -> dict[str, object]:
    if not path.is_file():
        raise ModelInvalid(
            f"The model folder {folder} has no {path.name}.",
            "Use a complete Hugging Face model folder: config.json, *.safetensors and the tokenizer files.",
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelInvalid(f"{path} can't be read as JSON: {error}.", "Copy the model folder again.") from None
    if not isinstance(value, dict):
        raise ModelInvalid(f"{path} is not a JSON object.", "Copy the model folder again.")
    return value


def _weight_files(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index, folder).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelInvalid(f"{index} has no weight_map.", "Copy the model folder again.")
        shards = sorted({folder / Path(str(name)).name for name in weight_map.values()})
        present = {path.name for path in folder.iterdir() if path.is_file()}
        # The names are the file's: they are compared, and no path is made of one that is not there.
        missing = [path.name[:80].encode(errors="replace").decode() for path in shards if path.name not in present]
        if missing:
            raise ModelInvalid(f"{folder} lacks the weight files {', '.join(missing)}.", "Copy the model folder again.")
        return shards
    unsafe = sorted(path.name for pattern in _UNSAFE for path in folder.glob(pattern))
    if unsafe:
        raise ModelInvalid(
            f"{folder} has weights only as {', '.join(unsafe[:3])}; tersely reads safetensors alone.",
            "Convert once with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW_FOLDER).",
        )
    raise ModelInvalid(
        f"The model folder {folder} has no model.safetensors (nor model.safetensors.index.json).",
        "Use a complete Hugging Face model folder: config.json, *.safetensors and the tokenizer files.",
    )


def _check_safetensors(path: Path) -> None:
    """Header readable and file as long as it says: what a broken copy or a Git LFS pointer gets wrong."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > min(size, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_bytes))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        if 8 + header_bytes + max(ends, default=0) != size:
            raise ValueError(f"it should be {8 + header_bytes + max(ends, default=0)} bytes long, but has {size}")
    except (*_DAMAGE, struct.error, OSError) as error:
        raise ModelInvalid(f"{path} is not a whole safetensors file: {error}.", "Copy or download it again.") from None


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelTokenizerMissing(
            f"The model folder {folder} has no tokenizer (tokenizer.json).",
            "Copy tokenizer.json and tokenizer_config.json of the same model into it.",
        )
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or not _read_json(settings, folder).get("chat_template"):
        raise ModelTokenizerMissing(
            f"The tokenizer in {folder} has no chat template.",
            "Use the instruct (chat) variant of the model, or put its chat_template.jinja into the folder.",
        )
