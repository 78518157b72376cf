"""A language model's reply, taken at its word only where it is the JSON object that was asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tersely.judge.rubrics import HIGHEST, LOWEST

SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "score": {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}
LEAST_MASS = 0.5
"""Token probabilities that leave more than this out say too little to weight a score with."""
UNSURE_MASS = 0.01


class BadReply(ValueError):
    """The reply is not the JSON object that was asked for."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that holds.

    Attributes:
        score: As written, 0 to 10.
        reason: As written.
        score_at: Where the score's digits begin, in characters of the reply.
    """

    score: int
    reason: str
    score_at: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the reply, with the log-probabilities of what could have stood there, itself included."""

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]


def read_reply(content: str) -> Reply:
    """Reads a reply; words around the object, such as a code fence, do no harm.

    Raises:
        BadReply: No object, or not exactly a reason and a whole score from 0 to 10.
    """
    begin = content.find("{")
    if begin < 0:
        raise BadReply("no JSON object in the answer")
    try:
        fields, length = json.JSONDecoder().raw_decode(content[begin:])
    except (ValueError, RecursionError):
        raise BadReply("the answer is no JSON") from None
    if not isinstance(fields, dict) or set(fields) != {"reason", "score"}:
        raise BadReply("the answer's fields are not reason and score")
    score, reason = fields["score"], fields["reason"]
    if isinstance(score, float) and score.is_integer():
        score = int(score)
    if isinstance(score, bool) or not isinstance(score, int) or not LOWEST <= score <= HIGHEST:
        raise BadReply(f"the score is no whole number from {LOWEST} to {HIGHEST}")
    if not isinstance(reason, str) or not reason.strip():
        raise BadReply("the reason is empty")
    return Reply(score, reason.strip(), _score_position(content, begin, begin + length))


def _score_position(content: str, begin: int, end: int) -> int:
    """Where the value of the key `score` begins: the last such key, as JSON takes it, outside any string."""
    position, at = -1, begin
    while at < end:
        if content[at] != '"':
            at += 1
            continue
        closing = at + 1
        while content[closing] != '"':
            closing += 2 if content[closing] == "\\" else 1
        after = closing + 1
        while content[after].isspace():
            after += 1
        if content[at : closing + 1] == '"score"' and content[after] == ":":
            position = after + 1
            while content[position].isspace():
                position += 1
        at = closing + 1
    return position


def score_odds(reply: Reply, content: str, tokens: Sequence[Token]) -> dict[int, float] | None:
    """Probabilities of the scores that the model could have written, or None where its tokens don't tell.

    A tokenizer may write 10 as one token or as two. In the second case a candidate "1" for the first digit is 1 or 10;
    where nothing tells which, there are no odds, and the score stays as it was written.

    Args:
        reply: The reply.
        content: Its text.
        tokens: Its tokens; their texts may differ from it before the score, where a token is a part of a character.

    Returns:
        Score to probability, summing to 1; the tokens that were no score are left out.
    """
    written = str(reply.score)
    score_at = _position_in_tokens(reply, content, tokens)
    index = _token_at(tokens, score_at)
    if index is None:
        return None
    mass: dict[int, float] = {}
    for text, logprob in tokens[index].alternatives:
        stripped = text.strip()
        if stripped.isdecimal() and stripped.isascii() and len(stripped) <= 2 and int(stripped) <= HIGHEST:
            mass[int(stripped)] = mass.get(int(stripped), 0.0) + math.exp(logprob)
    total = sum(mass.values())
    if total < LEAST_MASS:
        return None
    first = tokens[index].text.strip()
    if first == "1" and written == "10":
        follows = _token_at(tokens, score_at + 1)
        if follows is None or tokens[follows].text.strip() != "0":
            return None
        ten = math.exp(tokens[follows].logprob)
        one = mass.pop(1, 0.0)
        mass[10], mass[1] = one * ten, one * (1.0 - ten)
    elif first != written or (mass.get(1, 0.0) / total > UNSURE_MASS and 10 not in mass and written != "1"):
        return None
    elif written == "1":
        follows = _token_at(tokens, score_at + 1)
        if follows is not None and 10 not in mass:
            zero = sum(math.exp(p) for text, p in tokens[follows].alternatives if text.strip() == "0")
            mass[10], mass[1] = mass[1] * zero, mass[1] * (1.0 - zero)
    total = sum(mass.values())
    return {score: share / total for score, share in mass.items() if share > 0}


def _position_in_tokens(reply: Reply, content: str, tokens: Sequence[Token]) -> int:
    """Where the score begins in the tokens' joined texts, by what stands right before it; -1: nowhere."""
    begin = max(0, reply.score_at - 10)
    found = "".join(token.text for token in tokens).rfind(content[begin : reply.score_at + len(str(reply.score))])
    return found if found < 0 else found + reply.score_at - begin


def _token_at(tokens: Sequence[Token], position: int) -> int | None:
    """Index of the token that begins at a character, or before it with nothing but space in between."""
    at = 0
    for index, token in enumerate(tokens):
        lead = len(token.text) - len(token.text.lstrip())
        if at <= position < at + len(token.text):
            return index if position <= at + lead else None
        at += len(token.text)
    return None
