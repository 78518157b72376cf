"""Cutting a document to a number of tokens, at the end of a sentence if it can be."""

from __future__ import annotations

import re

from tersely.models.tokenizer import PolicyTokenizer

# A full stop and the like with the quotes and brackets that close behind it, then space; or a new line.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+|(?=\n)")


def sentence_ends(text: str) -> list[int]:
    """Positions, ascending and in characters, just behind each sentence; the last is the end of the text."""
    begin = len(text) - len(text.lstrip())
    ends = {match.end() for match in _END.finditer(text) if match.end() > begin}
    return sorted(ends | {len(text)})


def cut_document(text: str, tokenizer: PolicyTokenizer, max_tokens: int) -> tuple[str, int]:
    """The longest run of whole sentences from the start that fits.

    If not even the first sentence fits, it is cut between tokens.

    Args:
        text: The document.
        tokenizer: Counts.
        max_tokens: Most tokens to keep, at least 1.

    Returns:
        The kept text and the number of tokens cut from the document (0: nothing was cut).
    """
    ids = tokenizer.encode(text)
    if len(ids) <= max_tokens:
        return text, 0
    ends = sentence_ends(text)
    low, high = 0, len(ends) - 1  # how many sentences fit: more make more tokens
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(text[: ends[middle - 1]])) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    kept = text[: ends[low - 1]].rstrip() if low else _cut_tokens(ids, tokenizer, max_tokens)
    return kept, len(ids) - len(tokenizer.encode(kept))


def lead_sentences(text: str, tokenizer: PolicyTokenizer, target_tokens: int) -> tuple[str, int]:
    """The first sentences of a text, as many as come nearest to a length; the fewer of two that are as near.

    Returns:
        At least one sentence, and its length in tokens.
    """
    best: tuple[int, str, int] | None = None
    for end in sentence_ends(text):
        lead = text[:end].strip()
        tokens = len(tokenizer.encode(lead))
        if lead and (best is None or abs(tokens - target_tokens) < best[0]):
            best = (abs(tokens - target_tokens), lead, tokens)
        if tokens > target_tokens:
            break
    return ("", 0) if best is None else best[1:]


def _cut_tokens(ids: list[int], tokenizer: PolicyTokenizer, max_tokens: int) -> str:
    for count in range(max_tokens, 0, -1):
        # The last token may hold half a character.
        text = tokenizer.decode(ids[:count]).rstrip("\ufffd").rstrip()
        if text and len(tokenizer.encode(text)) <= max_tokens:
            return text
    return ""
