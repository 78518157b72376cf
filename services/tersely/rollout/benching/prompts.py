"""What is generated: prompts of an exact length for the rates, whole ones with their own ends for look-up."""

from __future__ import annotations

from collections.abc import Sequence

from tersely.config.schema import DataSection
from tersely.data.records import Record, load_records
from tersely.grpo.seeds import group_seed
from tersely.models.tokenizer import PolicyTokenizer
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

_INSTRUCTION = "Summarize the following text in one sentence of about 64 tokens. Write only the summary.\n\n"
LABEL = WeightsLabel(PolicyVersion(0), "00" * 32)
"""Of the weights of a benchmark, which nobody published."""


def exact_prompts(tokenizer: PolicyTokenizer, count: int, tokens: int) -> list[list[int]]:
    """Conversations about abstracts of ACLSum, each of exactly `tokens` ids up to where the answer begins.

    Raises:
        ValueError: Too few abstracts are long enough.
        DownloadFailed: The data is not cached and can't be fetched.
    """
    first, second = (_chat(tokenizer, _INSTRUCTION + text) for text in ("One.", "Two!"))
    tail = 0
    while first[-1 - tail] == second[-1 - tail]:
        tail += 1
    after = first[len(first) - tail :]
    whole = (_chat(tokenizer, _INSTRUCTION + tokenizer.plain(r.document)) for r in _records("train"))
    prompts = [[*ids[: tokens - tail], *after] for ids in whole if len(ids) >= tokens]
    if len(prompts) < count:
        raise ValueError(f"only {len(prompts)} abstracts fill prompts of {tokens} tokens, not {count}")
    return prompts[:count]


def whole_prompts(tokenizer: PolicyTokenizer, count: int, document_tokens: int) -> list[list[int]]:
    """Conversations about held-out abstracts, cut after so many tokens.

    Raises:
        DownloadFailed: The data is not cached and can't be fetched.
    """
    prompts = []
    for record in _records("val")[:count]:
        ids = tokenizer.encode(tokenizer.plain(record.document))[:document_tokens]
        prompts.append(_chat(tokenizer, _INSTRUCTION + tokenizer.decode(ids)))
    return prompts


def requests(
    prompts: Sequence[Sequence[int]],
    *,
    size: int,
    limit: int,
    stop: Sequence[int] = (),
    greedy: bool = False,
    seed: int,
) -> list[group_pb2.PromptGroup]:
    """Groups that need no particular weights, so that engines may decode them together.

    Args:
        prompts: Ids, one prompt a group.
        size: Completions per group.
        limit: Most ids per completion, and without `stop` the number of them.
        seed: Different seeds sample differently.
        stop: Ids that end a completion.
        greedy: Take the likeliest token instead of sampling.
    """
    made = []
    for number, ids in enumerate(prompts):
        group = group_pb2.PromptGroup(
            run_id="r-bench",
            group_id=f"g-{seed}-{number}",
            prompt_id=str(number),
            prompt_token_ids=ids,
            group_size=size,
            target_tokens=limit,
            stop_token_ids=stop,
            purpose=common_pb2.GROUP_PURPOSE_TRAINING,
        )
        group.sampling.temperature = 1.0
        group.sampling.max_completion_tokens = limit
        group.sampling.seed = group_seed(0, seed, str(number))
        group.sampling.greedy_samples = size if greedy else 0
        made.append(group)
    return made


def _chat(tokenizer: PolicyTokenizer, content: str) -> list[int]:
    return tokenizer.encode_chat([{"role": "user", "content": content}])


def _records(split: str) -> list[Record]:
    return load_records(DataSection(source="aclsum"), split)
