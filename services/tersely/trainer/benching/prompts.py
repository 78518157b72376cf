"""The prompts that both sides train on: abstracts of ACLSum, all cut to about the same length."""

from __future__ import annotations

from dataclasses import dataclass

from tersely.config.schema import DataSection
from tersely.data.records import load_records
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.benching.shapes import HEADLINE

DOCUMENT_TOKENS = 220
_INSTRUCTION = "Summarize the abstract in one sentence.\n\n"


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One prompt.

    Attributes:
        content: The user's message, as the peer gets it.
        token_ids: The conversation up to where the answer begins, as we send it; the peer makes the same of it.
        reference: Human summary.
    """

    content: str
    token_ids: tuple[int, ...]
    reference: str


def bench_prompts(tokenizer: PolicyTokenizer, count: int) -> list[BenchPrompt]:
    """The first prompts whose document is long enough; they repeat when there are fewer.

    Raises:
        DownloadFailed: The data is not cached and can't be fetched.
    """
    prompts: list[BenchPrompt] = []
    for record in load_records(DataSection(source="aclsum"), "train"):
        ids = tokenizer.encode(tokenizer.plain(record.document))
        if len(ids) < DOCUMENT_TOKENS or len(prompts) == count:
            continue
        content = _INSTRUCTION + tokenizer.decode(ids[:DOCUMENT_TOKENS])
        token_ids = tokenizer.encode_chat([{"role": "user", "content": content}])
        prompts.append(BenchPrompt(content, tuple(token_ids), record.reference(HEADLINE.completion)))
    return [prompts[index % len(prompts)] for index in range(count)]
