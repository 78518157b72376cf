"""The policy's tokenizer, with what hostile text could do to it ruled out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tersely.errors import ModelInvalid, ModelTokenizerMissing
from tersely.models.quiet import quiet_transformers

_MARK = "tersely-turn-mark"


class PolicyTokenizer:
    """Text to token ids and back, and the ids that end a completion.

    Text that people supply never becomes a control token: a document that holds `<|im_end|>` can't end its turn.

    Attributes:
        stop_token_ids: Ids that end a completion, ascending, at least one.
    """

    stop_token_ids: tuple[int, ...]

    def __init__(self, tokenizer: Any, generation_stop_ids: Iterable[int] = ()) -> None:
        """Wrap a transformers tokenizer that has a chat template; use `from_folder`."""
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special_ids = frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
        contents = {token.content for token in added.values() if token.special or _is_control(token.content)}
        contents |= {token for token in tokenizer.all_special_tokens if token}
        # Longest first, so that a token inside another one is not broken before it.
        self._control = sorted(
            (text for text in contents if len(text.strip()) > 1), key=lambda text: (-len(text), text)
        )
        stops = {int(i) for i in generation_stop_ids}
        if tokenizer.eos_token_id is not None:
            stops.add(int(tokenizer.eos_token_id))
        stops.update(self._turn_end())
        self.stop_token_ids = tuple(sorted(stops))

    @classmethod
    def from_folder(cls, folder: Path) -> PolicyTokenizer:
        """Load from a model folder; nothing is fetched and no code in it is run.

        Raises:
            ModelTokenizerMissing: No tokenizer, no chat template, or no token that ends a completion.
        """
        transformers = quiet_transformers()
        try:
            inner = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelTokenizerMissing(
                f"The tokenizer in {folder} can't be loaded: {reason[:200]}",
                "Copy tokenizer.json and tokenizer_config.json of the same model into the folder.",
            ) from None
        if not inner.chat_template:
            raise ModelTokenizerMissing(
                f"The tokenizer in {folder} has no chat template.",
                "Use the instruct (chat) variant of the model, or put its chat_template.jinja into the folder.",
            )
        tokenizer = cls(inner, _generation_stop_ids(folder))
        if not tokenizer.stop_token_ids:
            raise ModelTokenizerMissing(
                f"Nothing in {folder} says which token ends an answer.",
                "Set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json.",
            )
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows; a model's output may be padded to more."""
        return len(self._tokenizer)

    def plain(self, text: str) -> str:
        """The text with every control token spelled out (`<|im_end|>` becomes `< |im_end|>`), else unchanged."""
        while any(token in text for token in self._control):
            for token in self._control:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: nothing is added around it, and control tokens in it are spelled out in pieces."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins.

        Args:
            messages: `{"role": ..., "content": ...}` each; control tokens in a content are spelled out (see `plain`).

        Raises:
            ModelInvalid: The model's chat template refuses these messages, e.g. because it knows no system role.
        """
        safe = [{**message, "content": self._safe(message["content"])} for message in messages]
        ids: list[int] = self._template(safe, add_generation_prompt=True, tokenize=True)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids without control tokens; ids that no token has count as nothing."""
        known = [i for i in ids if 0 <= i < self.vocab_size]
        text: str = self._tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _safe(self, text: str) -> str:
        text = self.plain(text)
        # A normalizer may still turn other characters into a control token: then its text is what remains without it.
        if self._special_ids.isdisjoint(self._tokenizer.encode(text, add_special_tokens=False)):
            return text
        return self.plain(self.decode(self._tokenizer.encode(text, add_special_tokens=False)))

    def _template(self, messages: Sequence[dict[str, str]], **options: Any) -> Any:
        import jinja2

        try:
            return self._tokenizer.apply_chat_template(list(messages), return_dict=False, **options)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ModelInvalid(
                f"The model's chat template refuses the messages: {error}.",
                "If it knows no system role, leave data.system_prompt out.",
            ) from None

    def _turn_end(self) -> set[int]:
        """The control token that follows an assistant's text in the template, if one does."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        text: str = self._template(turns, tokenize=False)
        tail = text.rpartition(_MARK)[2]
        ids: list[int] = self._tokenizer.encode(tail, add_special_tokens=False)
        return set([i for i in ids if i in self._special_ids][:1])


def _is_control(text: str) -> bool:
    return len(text) > 2 and text.startswith("<") and text.endswith(">")


def _generation_stop_ids(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, OSError, AttributeError, RecursionError) as error:
        raise ModelInvalid(f"{path} can't be read as JSON: {error}.", "Copy the model folder again.") from None
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]
