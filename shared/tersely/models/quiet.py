"""transformers without progress bars, advice and warnings on the terminal."""

from __future__ import annotations

import importlib
import os
from typing import Any

from tersely.errors import PackageMissing


def quiet_transformers() -> Any:
    """Import transformers (seconds, the first time) with its talk turned off, and return the module.

    Raises:
        PackageMissing: transformers is not installed.
    """
    # Both are read when the libraries are first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise PackageMissing(
            f"Models and tokenizers need a package: {error}.", "Run `pip install 'tersely[model]'`."
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
