"""Two hostile texts and a rubric as one prompt, in which neither text can pass for anything but data."""

from __future__ import annotations

import hashlib
import re

from tersely.judge.rubrics import CLOSING, HIGHEST, LOWEST, OPENING, Rubric

_DELIMITER = re.compile(r"<(?=\s*/?\s*(?:document|summary)\b)", re.IGNORECASE)
# Servers turn these into control tokens wherever they stand in a message.
_CONTROL = re.compile(
    r"<(?=\|)|\|(?=>)|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|start_of_turn|end_of_turn|end_of_text)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS)\])|<(?=</?SYS>>)|(?:<｜|｜>)",
    re.IGNORECASE,
)
# DeepEval loads pictures and PDFs for such marks.
_ATTACHMENT = re.compile(r"\[(?=\s*DEEPEVAL\s*:)", re.IGNORECASE)
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")


def harmless(text: str) -> str:
    """The text without what a delimiter, a chat template or DeepEval could take for its own.

    Control and invisible characters go; the first character of such a sequence gets a space behind it, so that a judge
    still reads what was written.
    """
    text = _UNSEEN.sub("", text)
    for pattern in (_DELIMITER, _CONTROL, _ATTACHMENT):
        text = pattern.sub(lambda match: " ".join(match[0]) + " ", text)
    return text


def mark_of(document: str, summary: str) -> str:
    """The mark that both delimiters carry: 16 hexadecimal digits that a text can't contain by design, since they are
    its own hash; the same for the same texts, so that answers can be cached.
    """
    joined = f"{len(document)}:{document}{summary}".encode("utf-8", "replace")
    return hashlib.sha256(joined).hexdigest()[:16]


def delimited(name: str, text: str, mark: str) -> str:
    """A text between its delimiters.

    Args:
        name: `document` or `summary`.
        text: The raw text.
        mark: Of `mark_of`.
    """
    return f"<{name} {mark}>\n{harmless(text)}\n</{name} {mark}>"


def before_texts(rubric: Rubric, mark: str) -> str:
    """What stands before the texts: axis, steps, anchors, and where the texts begin and end."""
    anchors = "\n".join(
        f"{low}: {meaning}" if low == high else f"{low}-{high}: {meaning}" for low, high, meaning in rubric.anchors
    )
    steps = "".join(f"{number}. {step}\n" for number, step in enumerate(rubric.steps, 1))
    return OPENING.format(axis=rubric.axis, steps=steps, anchors=anchors, low=LOWEST, high=HIGHEST, mark=mark)


def after_texts(rubric: Rubric) -> str:
    """What stands after them: the task again, and the shape of the answer."""
    return CLOSING.format(axis=rubric.axis, low=LOWEST, high=HIGHEST)
