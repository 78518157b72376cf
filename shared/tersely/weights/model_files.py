"""The small files of a model folder that travel with the weights: config and tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tersely.errors import ModelInvalid

MODEL_FILE_NAMES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""Files that are sent, and the only ones that are accepted: no weights, no code."""

MOST_BYTES = 64 << 20
"""Most bytes of one file."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of the model folder, held in memory so that it stays what its hash says."""

    name: str
    data: bytes
    sha256: str


def read_model_files(folder: Path) -> list[ModelFile]:
    """Config and tokenizer files of a model folder, by name.

    Raises:
        ModelInvalid: A file is too large, or can't be read.
    """
    files = []
    for name in sorted(MODEL_FILE_NAMES):
        path = folder / name
        if not path.is_file():
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelInvalid(
                f"Can't read {path}: {error.strerror}.", "Check the rights of the model folder."
            ) from None
        if len(data) > MOST_BYTES:
            raise ModelInvalid(
                f"{path} has {len(data)} bytes; at most {MOST_BYTES} are sent.", "Check the model folder."
            )
        files.append(ModelFile(name, data, hashlib.sha256(data).hexdigest()))
    return files


def check_name(name: str) -> None:
    """Refuses a file name that a trainer has no business to send.

    Raises:
        ModelInvalid: It isn't one of `MODEL_FILE_NAMES` (so it can't leave its folder either).
    """
    if name not in MODEL_FILE_NAMES:
        raise ModelInvalid(
            f"The trainer offers a model file named {name[:80]!r}, which is not a config or tokenizer file.",
            "Check that the address is that of a trainer you trust, and that both sides run the same version.",
        )
