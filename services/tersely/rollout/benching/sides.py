"""One side of `tersely bench rollout`, in a process of its own: an engine, or the library's `generate`.

usage: python -m tersely.rollout.benching.sides NAME MODEL_FOLDER THREADS LOOKUP_TOKENS, jobs on standard input
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tersely.models.device import set_threads
from tersely.rollout.benching.child import serve
from tersely.rollout.benching.prompts import LABEL, requests
from tersely.rollout.engines import EngineSettings, generate, open_engine

GENERATE = "transformers_generate"
_ROWS = 16


class EngineSide:
    """An engine with the model's own weights.

    Args:
        name: As under `tersely.engines`.
        folder: Model folder with model.safetensors.
        threads: CPU threads.
        lookup_tokens: Most tokens drafted per step.
    """

    def __init__(self, name: str, folder: Path, threads: int, lookup_tokens: int) -> None:
        from safetensors.torch import load_file

        settings = EngineSettings("cpu", threads, batch_sequences=_ROWS, lookup_tokens=lookup_tokens)
        self._engine = open_engine(name, settings)
        self._engine.load(folder, LABEL, load_file(folder / "model.safetensors"))

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Generates the groups of a job, prompts included in the time.

        Args:
            job: `prompts`, `size`, `limit`, `stop`, `greedy` and `seed` as of `requests`.
        """
        groups = requests(
            job["prompts"],
            size=job["size"],
            limit=job["limit"],
            stop=job["stop"],
            greedy=job["greedy"],
            seed=job["seed"],
        )
        began = time.perf_counter()
        done = list(generate(self._engine, groups))
        seconds = time.perf_counter() - began
        done.sort(key=lambda group: group.prompt.group_id)
        ids = [list(completion.token_ids) for group in done for completion in group.completions]
        digest = hashlib.sha256(repr(ids).encode()).hexdigest()
        tokens = sum(map(len, ids))
        return {"seconds": seconds, "tokens": tokens, "ids_sha256": digest}

    def prefill(self, job: Mapping[str, Any]) -> int | None:
        """Positions that the model computes while the groups of a job are admitted, by its look-ups in the embedding.

        Returns:
            None where nothing was seen: the engine prefills elsewhere, or not with torch.
        """
        from torch.utils._python_dispatch import TorchDispatchMode

        seen = 0

        class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, called: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
                nonlocal seen
                if called.overloadpacket._qualified_op_name == "aten::embedding":
                    seen += arguments[1].numel()
                return called(*arguments, **(named or {}))

        groups = requests(job["prompts"], size=job["size"], limit=job["limit"], seed=job["seed"])
        try:
            with Watch():  # type: ignore[no-untyped-call]
                for group in groups:
                    self._engine.admit(group)
        finally:
            for group in groups:
                self._engine.cancel(group.group_id)
        return seen or None


class GenerateSide:
    """`generate` of the library, all rows in one padded batch, fp32.

    Args:
        folder: Model folder.
        threads: CPU threads.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        from tersely.models.quiet import quiet_transformers

        set_threads(threads)
        self._model = quiet_transformers().AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        self._model.eval()

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Samples exactly `limit` tokens for each row; the prompts of a job must be of one length."""
        import torch

        rows = [ids for ids in job["prompts"] for _ in range(job["size"])]
        torch.manual_seed(job["seed"])
        ids_RP = torch.tensor(rows)
        began = time.perf_counter()
        with torch.inference_mode():
            made_RN = self._model.generate(
                ids_RP,
                attention_mask=torch.ones_like(ids_RP),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=job["limit"],
                max_new_tokens=job["limit"],
                pad_token_id=0,
            )
        seconds = time.perf_counter() - began
        tokens = made_RN.numel() - ids_RP.numel()
        return {"seconds": seconds, "tokens": tokens, "ids_sha256": ""}


def main() -> None:
    """Loads a side and answers jobs until there are no more."""
    name, folder, threads, lookup_tokens = sys.argv[1:5]
    if name == GENERATE:
        serve(GenerateSide(Path(folder), int(threads)).run)
    else:
        side = EngineSide(name, Path(folder), int(threads), int(lookup_tokens))
        serve(lambda job: {"tokens": side.prefill(job)} if job.get("do") == "prefill" else side.run(job))


if __name__ == "__main__":
    main()
