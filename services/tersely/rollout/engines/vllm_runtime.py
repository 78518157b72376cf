"""One vLLM engine in this process: made from a model's config, filled and refilled with weights, its caches reset.

vLLM re-packs weights when it loads them, so new ones go through its own layer-wise reload. That leaves the packed copy
of an output head that is tied to the embeddings as it was; it is packed again here.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersely.errors import ConfigValue, EngineFailed
from tersely.models.quiet import quiet_transformers
from tersely.rollout.engines.base import EngineSettings
from tersely.rollout.engines.in_place import matched

# Read by vLLM when it is imported.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process, where we reach it
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one that draws by logits processors on every platform
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"}
_BLOCK_TOKENS = {"cpu": 32, "cuda": 16}
_MEMORY_SHARE = 0.25
"""Of the free memory of a CPU machine, for keys and values; the trainer may be on the same machine."""
_CUDA_SHARE = 0.9
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    OSError,
)
"""What vLLM raises for what it can't do."""


def import_vllm(device: torch.device) -> Any:
    """Imports vLLM (many seconds, the first time) set up for one process, and returns the module.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ConfigValue: The installed vLLM is built for another device.
    """
    os.environ.update(_ENVIRONMENT)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with quiet_warnings():
        import vllm
        from vllm.platforms import current_platform

    built_for = str(current_platform.device_type)
    if built_for != device.type:
        raise ConfigValue(
            f"rollout.device is {device.type}, and the vLLM installed here is built for {built_for}.",
            "Run the worker with another engine, or `make setup-vllm` on a machine that has the device.",
        )
    return vllm


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Without Python warnings: what vLLM and its dependencies deprecate is not the user's to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class VllmRuntime:
    """A vLLM engine with one model.

    Args:
        model_folder: Folder with config.json; weights are not read from it.
        settings: Sequences and tokens to make room for.
        device: cpu or cuda.
        dtype: Arithmetic of the forward pass.

    Raises:
        EngineFailed: vLLM can't run the model here.
        ConfigValue: See `import_vllm`.
    """

    def __init__(self, model_folder: Path, settings: EngineSettings, device: torch.device, dtype: torch.dtype) -> None:
        import_vllm(device)
        with quiet_warnings():
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            from tersely.rollout.engines.vllm_draws import SeededDraws

        transformers = quiet_transformers()
        try:
            config = transformers.AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
            with torch.device("meta"):
                blank = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
            blank.tie_weights()
            self._own: dict[str, Tensor] = dict(blank.state_dict(keep_vars=True))
            self.vocabulary = int(config.vocab_size)
            room = _room(config, settings, device, dtype)
            arguments = EngineArgs(
                model=str(model_folder),
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",
                dtype=str(dtype).removeprefix("torch."),
                seed=0,
                max_num_seqs=settings.batch_sequences,
                block_size=_BLOCK_TOKENS[device.type],
                enable_prefix_caching=True,
                enforce_eager=device.type == "cpu",
                async_scheduling=False,
                disable_log_stats=True,
                distributed_executor_backend="uni",
                logits_processors=[SeededDraws],
                **room,
            )
            with quiet_warnings():
                self.engine: Any = LLMEngine.from_engine_args(arguments)
        except FAILURES as error:
            raise EngineFailed(
                f"vLLM can't run the model of {model_folder}: {error}", "Use the engine torch."
            ) from error
        self.longest: int = int(self.engine.model_config.max_model_len)
        cache = self.engine.vllm_config.cache_config
        self.block_tokens = int(cache.block_size)
        self.capacity_tokens = int(cache.num_gpu_blocks) * self.block_tokens

    @property
    def _runner(self) -> Any:
        return self.engine.model_executor.driver_worker.worker.model_runner

    @property
    def _model(self) -> Any:
        return self._runner.get_model()

    def check(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights by the model's own names; raises EngineFailed if they do not fit it."""
        return matched(self._own, weights)

    def refill(self, weights: Mapping[str, Tensor]) -> None:
        """Puts checked weights in place and forgets all keys and values; vLLM has no request meanwhile.

        Raises:
            EngineFailed: vLLM did not take them. The model then holds a mixture: refill with others.
        """
        try:
            with torch.no_grad():
                self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
                self._pack_tied_head()
        except FAILURES as error:
            self._finish_reload()
            raise EngineFailed(f"vLLM did not take the weights: {error}", "See the worker's log.") from error
        self.forget_prefixes()

    def _pack_tied_head(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        for module in self._model.modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)

    def _finish_reload(self) -> None:
        """Ends a reload that broke off, so that another can begin."""
        from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload

        with torch.no_grad():
            finalize_layerwise_reload(self._model, self.engine.model_config)

    def forget_prefixes(self) -> None:
        """Drops the keys and values of ended requests; raises EngineFailed if vLLM keeps them for others."""
        if not self.engine.reset_prefix_cache():
            raise EngineFailed("vLLM did not let go of its prefix cache.", "See the worker's log.")

    def wipe_caches(self) -> None:
        """Zeroes keys and values. What is not finite in a block would reach whoever gets it next, masked or not."""
        self.forget_prefixes()
        with torch.no_grad():
            for cache in self._runner.kv_caches:
                cache.zero_()

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability (temperature 1) of each id from the second on; vLLM has no other request."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True)
        self.engine.add_request("score", {"prompt_token_ids": list(token_ids)}, params)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    places = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
                    logprobs = [float(by_id[token].logprob) for token, by_id in places]
                    if not all(map(math.isfinite, logprobs)):
                        self.wipe_caches()
                    return logprobs
        raise EngineFailed("vLLM scored nothing.", "See the worker's log.")

    def close(self) -> None:
        """Lets the model and the caches go."""
        self.engine.engine_core.shutdown()


def _room(config: Any, settings: EngineSettings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Settings of vLLM for the memory of keys and values and the longest sequence.

    A given token budget is met with a block per sequence to spare; else a share of the free memory is taken.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_size * dtype.itemsize
    longest = int(config.max_position_embeddings)
    block = _BLOCK_TOKENS[device.type]
    if settings.batch_tokens is not None:
        tokens = settings.batch_tokens + block * settings.batch_sequences
    elif device.type == "cpu":
        import psutil

        tokens = int(_MEMORY_SHARE * psutil.virtual_memory().available / token_bytes)
        tokens = min(tokens, longest * settings.batch_sequences)
    else:
        free, total = torch.cuda.mem_get_info(device)
        return {"gpu_memory_utilization": _CUDA_SHARE * free / total, "max_model_len": -1}
    # A block more: vLLM keeps one for itself.
    size = (tokens // block + 2) * block * token_bytes
    return {"kv_cache_memory_bytes": size, "max_model_len": min(longest, max(tokens, block))}
