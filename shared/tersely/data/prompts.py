"""Records as prompts: token ids of the model's own chat template, with the length to learn stated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tersely.config.schema import DataSection
from tersely.data.records import Record
from tersely.data.sentences import cut_document
from tersely.models.tokenizer import PolicyTokenizer


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """What a worker needs to sample, and a scorer to score.

    Attributes:
        prompt_id: The record's id.
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


def prepare_prompts(
    records: Iterable[Record], tokenizer: PolicyTokenizer, data: DataSection, target_tokens: int
) -> list[PreparedPrompt]:
    """One prompt per record, in the same order."""
    return [prepare_prompt(record, tokenizer, data, target_tokens) for record in records]


def prepare_prompt(record: Record, tokenizer: PolicyTokenizer, data: DataSection, target_tokens: int) -> PreparedPrompt:
    """Cut the document to `data.max_document_tokens`, fill in the user message and encode the conversation.

    Control tokens in the document are spelled out, so that no document can end its turn.
    """
    document, cut = cut_document(tokenizer.plain(record.document), tokenizer, data.max_document_tokens)
    # The document goes in last: braces in it are text.
    user = data.prompt.replace("{target_tokens}", str(target_tokens)).replace("{document}", document)
    messages = [{"role": "user", "content": user}]
    if data.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": data.system_prompt})
    return PreparedPrompt(
        prompt_id=record.id,
        token_ids=tuple(tokenizer.encode_chat(messages)),
        document=document,
        reference=record.summary,
        target_tokens=target_tokens,
        document_tokens_cut=cut,
    )
