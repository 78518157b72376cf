"""Records as prompts: token ids of the model's own chat template, with the length to learn stated."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tersely.config.schema import DataSection
from tersely.data.records import Record
from tersely.data.sentences import cut_document
from tersely.models.tokenizer import PolicyTokenizer

_KEPT_PROMPTS = 4096


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """What a worker needs to sample, and a scorer to score.

    Attributes:
        prompt_id: The record's id, whatever the target.
        token_ids: The prompt up to where the answer begins.
        document: The source text as the model sees it, i.e. after the cut.
        reference: Human summary; empty when there is none.
        target_tokens: Length asked for, in tokens of the policy's tokenizer.
        document_tokens_cut: Tokens of the document that did not fit; 0 when it is whole.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    document: str
    reference: str
    target_tokens: int
    document_tokens_cut: int


class PromptSource(Protocol):
    """Prompts by number, each to be had with any length asked for."""

    def __len__(self) -> int: ...

    def prompt_id(self, index: int) -> str:
        """Id of a prompt; the same for every length."""

    def prompt(self, index: int, target_tokens: int) -> PreparedPrompt:
        """A prompt that asks for a length."""


class PromptBook:
    """Records that become prompts when they are asked for, each with the length then asked for.

    Documents are cut at once; conversations are encoded at their first use, and the last few thousand are kept.

    Args:
        records: In file order.
        tokenizer: The policy's.
        data: Prompt texts and the limit for documents.
    """

    def __init__(self, records: Sequence[Record], tokenizer: PolicyTokenizer, data: DataSection) -> None:
        self._records = records
        self._tokenizer = tokenizer
        self._data = data
        self._documents = [_cut(record, tokenizer, data) for record in records]
        self._kept = functools.lru_cache(maxsize=_KEPT_PROMPTS)(self._prepare)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def documents_cut(self) -> int:
        """How many documents did not fit whole."""
        return sum(1 for _, cut in self._documents if cut)

    def prompt_id(self, index: int) -> str:
        """Id of a record."""
        return self._records[index].id

    def prompt(self, index: int, target_tokens: int) -> PreparedPrompt:
        """A record as a prompt that asks for a length."""
        return self._kept(index, target_tokens)

    def _prepare(self, index: int, target_tokens: int) -> PreparedPrompt:
        return _prompt(self._records[index], self._documents[index], self._tokenizer, self._data, target_tokens)


def prepare_prompts(
    records: Iterable[Record], tokenizer: PolicyTokenizer, data: DataSection, target_tokens: int
) -> list[PreparedPrompt]:
    """One prompt per record, in the same order."""
    return [prepare_prompt(record, tokenizer, data, target_tokens) for record in records]


def prepare_prompt(record: Record, tokenizer: PolicyTokenizer, data: DataSection, target_tokens: int) -> PreparedPrompt:
    """Cut the document to `data.max_document_tokens`, fill in the user message and encode the conversation.

    Control tokens in the document are spelled out, so that no document can end its turn.
    """
    return _prompt(record, _cut(record, tokenizer, data), tokenizer, data, target_tokens)


def _cut(record: Record, tokenizer: PolicyTokenizer, data: DataSection) -> tuple[str, int]:
    return cut_document(tokenizer.plain(record.document), tokenizer, data.max_document_tokens)


def _prompt(
    record: Record, cut: tuple[str, int], tokenizer: PolicyTokenizer, data: DataSection, target_tokens: int
) -> PreparedPrompt:
    document, tokens_cut = cut
    # The document goes in last: braces in it are text.
    user = data.prompt.replace("{target_tokens}", str(target_tokens)).replace("{document}", document)
    messages = [{"role": "user", "content": user}]
    if data.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": data.system_prompt})
    return PreparedPrompt(
        prompt_id=record.id,
        token_ids=tuple(tokenizer.encode_chat(messages)),
        document=document,
        reference=record.reference(target_tokens),
        target_tokens=target_tokens,
        document_tokens_cut=tokens_cut,
    )
