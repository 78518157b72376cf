"""From the name in a recipe to a model folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from tersely.errors import ModelMissing
from tersely.models.cache import cache_folder
from tersely.models.folder import check_model_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate_model(name: str, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """The folder of a model, downloaded or made if need be.

    Args:
        name: A folder, `smollm2-135m`, `tiny`, or a hub id such as `Qwen/Qwen2.5-0.5B-Instruct`. A folder of that name
            in the current directory goes before a hub id.
        revision: Hub revision (branch, tag or commit); only for hub ids.
        cache_dir: Where downloads go; none: $TERSELY_CACHE or ~/.cache/tersely (hub ids: the hub's own cache).

    Returns:
        A folder with config.json, safetensors weights, tokenizer and chat template.

    Raises:
        ModelMissing: Neither a folder, a built-in name nor a hub id that exists.
        ModelInvalid: Config or weights are unusable.
        ModelTokenizerMissing: No tokenizer or no chat template.
        DownloadFailed: `smollm2-135m` is not cached and can't be fetched.
        HubUnreachable: The hub id is not cached and the hub can't be reached.
    """
    if name == "smollm2-135m":
        from tersely.models.smollm2 import smollm2_folder

        return check_model_folder(smollm2_folder(cache_folder(cache_dir)))
    if name == "tiny":
        from tersely.models.tiny import tiny_folder

        return check_model_folder(tiny_folder(cache_folder(cache_dir)))
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # ~SOMEBODY who is not known here
        raise ModelMissing(f"There is no model {name!r}: {error}", "Write the folder in full.") from None
    if path.is_dir():
        return check_model_folder(path.resolve())
    if path.is_file():
        raise ModelMissing(f"{path} is a file, not a model folder.", "Set model.name to the folder that holds it.")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelMissing(
            f"There is no model {name!r}: no such folder, and no built-in name.",
            "Set model.name to a folder, a hub id (owner/name), smollm2-135m or tiny.",
        )
    from tersely.models.hub import hub_folder

    return check_model_folder(hub_folder(name, revision, cache_dir))
