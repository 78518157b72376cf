"""The reference engine: any Hugging Face causal LM with full attention, on the CPU, CUDA or MPS, in plain PyTorch.

A group's prompt is prefilled once, as one text at its own length, and its keys and values are shared by the samples.
Groups join and leave between two tokens. A training group of a synchronous run is a batch of its own, so every product
has the shape it would have anywhere else and the tokens and logprobs come out the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tersely.errors import EngineFailed
from tersely.models.device import choose_device, set_threads
from tersely.rollout.engines.base import HALF_TOLERANCE, Capabilities, EngineSettings, GeneratedGroup
from tersely.rollout.engines.batch import Batch
from tersely.rollout.engines.budget import Budget, Load
from tersely.rollout.engines.checked import check_against_library
from tersely.rollout.engines.lean_model import LeanModel, LeanWeights, is_lean
from tersely.rollout.engines.library_model import LibraryModel
from tersely.types import WeightsLabel
from tersely.v1 import group_pb2


class TorchEngine:
    """Samples with PyTorch; fp32 on the CPU, bf16 on CUDA and MPS.

    Args:
        settings: Device, threads, and what is decoded together.
        dtype: Arithmetic, when not the device's default (float64 serves tests).
    """

    def __init__(self, settings: EngineSettings, dtype: torch.dtype | None = None) -> None:
        self._settings = settings
        self._device = choose_device(settings.device, "rollout.device")
        self._dtype = dtype or (torch.float32 if self._device.type == "cpu" else torch.bfloat16)
        self._threads = set_threads(settings.threads)
        self._model: LeanModel | LibraryModel | None = None
        self._batch: Batch | None = None
        self._budget: Budget | None = None
        self._label: WeightsLabel | None = None
        self._staged: tuple[Mapping[str, Tensor], LeanWeights] | None = None

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""
        return self._label

    @property
    def running(self) -> int:
        """Groups admitted and not yet finished or cancelled."""
        return 0 if self._batch is None else len(self._batch.groups)

    @property
    def rows_running(self) -> int:
        """Sequences of them that have not ended; only these take places of the batch."""
        return 0 if self._batch is None else len(self._batch.rows)

    @property
    def tokens_prefilled(self) -> int:
        """Prompt tokens computed since `load`, without those computed again after a swap in flight."""
        return 0 if self._batch is None else self._batch.tokens_prefilled

    @property
    def tokens_drafted(self) -> int:
        """Tokens guessed by prompt look-up since `load`."""
        return 0 if self._batch is None else self._batch.tokens_drafted

    @property
    def tokens_accepted(self) -> int:
        """Those of them that were right."""
        return 0 if self._batch is None else self._batch.tokens_accepted

    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name="torch",
            device=str(self._device),
            threads=self._threads,
            bit_exact=self._device.type == "cpu",
            batch_sequences=self._settings.batch_sequences,
            dtype=str(self._dtype).removeprefix("torch."),
            in_flight=True,
            logprob_tolerance=1e-3 if self._dtype in (torch.float32, torch.float64) else HALF_TOLERANCE,
        )

    @torch.inference_mode()
    def load(self, model_folder: Path, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Builds the model from config.json alone, fills it, and compares it with the library's own forward pass.

        Raises:
            EngineFailed: The config can't be used, the weights do not fit it, or the model's attention is not plain.
        """
        library = LibraryModel(model_folder, self._dtype, self._device)
        library.fill(weights)
        model: LeanModel | LibraryModel = library
        if is_lean(library):
            model = LeanModel(library)
            model.use(model.make(weights))
        else:
            library.use_fast_products()
        check_against_library(model, library)
        self._batch = Batch(model, self._settings.batch_sequences, self._settings.lookup_tokens)
        self._model, self._label, self._staged = model, label, None
        del library
        self._budget = Budget.of(self._settings, model.shape)

    def stage(self, weights: Mapping[str, Tensor]) -> None:
        """Prepares a swap to these weights while the engine works; may be called by another thread than the rest.

        They are laid out beside the ones that serve; the `swap` that is given this very mapping then takes no time. One
        set is kept, the last. For models without a second buffer it does nothing.

        Raises:
            EngineFailed: Nothing is loaded yet, or the weights do not fit the model.
        """
        model = self._model
        if model is None:
            raise EngineFailed("No model is loaded whose weights could be swapped.", "Load one first.")
        if isinstance(model, LeanModel):
            self._staged = None
            self._staged = weights, model.make(weights)

    @torch.inference_mode()
    def swap(self, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Puts other weights of the same model in place; on failure the old ones stay whole.

        The caches of what runs are made again, so that the next token is the new weights' own.

        Raises:
            EngineFailed: Nothing is loaded yet, or the weights do not fit the model.
        """
        if self._model is None or self._batch is None:
            raise EngineFailed("No model is loaded whose weights could be swapped.", "Load one first.")
        if isinstance(self._model, LeanModel):
            staged, self._staged = self._staged, None
            made = staged[1] if staged is not None and staged[0] is weights else self._model.make(weights)
            self._model.use(made)
        else:
            self._model.fill(weights)
        self._label = label
        self._batch.refill()

    def has_room(self, group: group_pb2.PromptGroup) -> bool:
        """Whether `admit` may be called for it now; always true when nothing runs."""
        if self._batch is None or self._budget is None:
            return True
        return self._budget.has_room([Load(one.prompt, one.rows_running) for one in self._batch.groups], group)

    @torch.inference_mode()
    def admit(self, group: group_pb2.PromptGroup) -> None:
        """Takes a group in and prefills its prompt once.

        Raises:
            EngineFailed: Nothing is loaded, the group runs already, it is empty, or it may grow beyond the model.
        """
        batch = self._loaded()
        if not group.prompt_token_ids or group.group_size < 1 or group.sampling.max_completion_tokens < 1:
            raise EngineFailed(f"Group {group.group_id} has no prompt, no samples or no room for tokens.")
        if any(one.prompt.group_id == group.group_id for one in batch.groups):
            raise EngineFailed(f"Group {group.group_id} runs already.", "Give every group an id of its own.")
        longest = len(group.prompt_token_ids) + group.sampling.max_completion_tokens
        most = None if self._model is None else self._model.longest
        if most is not None and longest > most:
            raise EngineFailed(
                f"Group {group.group_id} may grow to {longest} tokens; the model has positions for {most}.",
                "Shorten prompts, or lower length.max_completion_tokens.",
            )
        batch.admit(group)

    @torch.inference_mode()
    def step(self) -> list[GeneratedGroup]:
        """At least one token for every running sequence; the groups whose last one ended.

        Raises:
            EngineFailed: Nothing is loaded, or the logits are not finite; nothing runs then.
        """
        batch = self._loaded()
        assert self._label is not None
        try:
            return batch.step(self._label)
        except EngineFailed:
            batch.clear()
            raise

    @torch.inference_mode()
    def cancel(self, group_id: str) -> None:
        """Forgets a running group at once; an unknown one is left alone."""
        if self._batch is not None:
            self._batch.cancel(group_id)

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability (temperature 1) of each id from the second on, given those before it; any time.

        Raises:
            EngineFailed: Nothing is loaded.
        """
        return self._loaded().score(list(token_ids))

    def _loaded(self) -> Batch:
        if self._batch is None:
            raise EngineFailed("No model is loaded to generate with.", "Load one first.")
        return self._batch
