"""One call to an OpenAI-compatible endpoint: what to send it, what its faults mean, what it took."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import openai
import structlog

from tersely.config.judge import JudgeSection
from tersely.errors import ConfigValue, JudgeEndpoint
from tersely.judge.failures import CallFailed
from tersely.judge.limits import Used
from tersely.judge.reply import SCHEMA, BadReply, Reply, Token, read_reply, score_odds
from tersely.judge.rubrics import SYSTEM

log = structlog.get_logger(__name__)
OPTIONAL = ("logprobs", "response_format", "temperature", "seed")
"""What an endpoint may do without, in the order in which it is left out when nothing tells what it refused."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a call brought.

    Attributes:
        reply: The score as written, and the reason.
        odds: Probabilities of the scores; None when the endpoint gives none that tell.
        used: Tokens.
    """

    reply: Reply
    odds: dict[int, float] | None
    used: Used


class Endpoint:
    """An OpenAI-compatible endpoint, safe to use from several threads.

    It is asked for JSON of a schema, for log-probabilities, and with a seed; what it refuses (HTTP 400 or 422) is left
    out from then on, logged, and shown by `left_out`.

    Args:
        settings: With an endpoint.
    """

    def __init__(self, settings: JudgeSection) -> None:
        self._settings = settings
        name = settings.used_key_env
        key = os.environ.get(name) if name else None
        if name and not key:
            raise ConfigValue(
                f"The environment variable {name}, which holds the endpoint's key, is not set.",
                "Set it, or name another one (--api-key-env, judge.api_key_env).",
            )
        # No retries, no key and no organisation from the environment that were not asked for.
        self._client = openai.OpenAI(
            base_url=settings.endpoint,
            api_key=key or "none",
            organization="",
            project="",
            max_retries=0,
            timeout=settings.timeout_seconds,
        )
        self._lock = threading.Lock()
        self._left_out: list[str] = []
        self._limit_name = "max_tokens"
        self._alternatives = 20
        self._model = settings.model

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the endpoint refused so far."""
        with self._lock:
            return tuple(self._left_out)

    def model(self) -> str:
        """The model that judges: the one that is set, else the only one that the endpoint serves.

        Raises:
            ConfigValue: It serves several.
            JudgeEndpoint: It does not say which it serves.
        """
        if self._model is None:
            try:
                names = [model.id for model in self._client.models.list()]
            except (openai.OpenAIError, ValueError) as error:
                raise JudgeEndpoint(
                    f"The endpoint {self._settings.endpoint} does not tell which models it serves: {error}.",
                    "Check that it runs, and its URL (mostly ending in /v1); or name the model (--model, judge.model).",
                ) from None
            if len(names) != 1:
                listed = ", ".join(names[:10]) or "none"
                raise ConfigValue(
                    f"The endpoint {self._settings.endpoint} serves {len(names)} models ({listed}).",
                    "Name the one that is to judge (--model, judge.model).",
                )
            self._model = names[0]
        return self._model

    def most(self, prompt: str) -> Used:
        """The most that a call can take: a token per two bytes and one per message, and the longest answer."""
        return Used(len((SYSTEM + prompt).encode("utf-8", "replace")) // 2 + 16, self._settings.max_answer_tokens)

    def ask(self, prompt: str, seed: int) -> Judged:
        """Makes one call; calls again only to leave out what the endpoint refuses.

        Raises:
            CallFailed: No usable answer.
        """
        while True:
            given = self._request(prompt, seed)
            try:
                completion = self._client.chat.completions.create(**given)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not self._leave_out(str(error), given):
                    raise CallFailed("judge_refused", _said(error), retry=False) from None
            except (openai.OpenAIError, ValueError) as error:
                raise _failure(error) from None
            else:
                return self._read(completion, prompt)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _request(self, prompt: str, seed: int) -> dict[str, Any]:
        with self._lock:
            given: dict[str, Any] = {
                "model": self.model(),
                "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
                self._limit_name: self._settings.max_answer_tokens,
                "temperature": self._settings.used_temperature,
                "seed": seed,
                "logprobs": True,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "judgement", "strict": True, "schema": SCHEMA},
                },
            }
            for name in self._left_out:
                del given[name]
            if "logprobs" in given:
                given["top_logprobs"] = self._alternatives
        # A lone surrogate has no UTF-8, and HTTP needs one.
        given["messages"][1]["content"] = prompt.encode("utf-8", "replace").decode()
        return given

    def _leave_out(self, message: str, given: dict[str, Any]) -> bool:
        """Adapts to a refusal of the request `given`; False when there is nothing left to leave out."""
        lowered = message.lower()
        # Text that is too long stays too long.
        if "context length" in lowered or "context_length" in lowered or "too long" in lowered:
            return False
        with self._lock:
            if self._limit_name in given and self._limit_name == "max_tokens" and "max_completion_tokens" in lowered:
                self._limit_name = "max_completion_tokens"
                return True
            if self._limit_name not in given:
                return True
            if "top_logprobs" in lowered and "logprobs" in given and self._alternatives > 5:
                if given["top_logprobs"] == self._alternatives:
                    self._alternatives = 10 if self._alternatives > 10 else 5
                return True
            there = [name for name in OPTIONAL if name not in self._left_out]
            if any(name in given and name not in there for name in OPTIONAL):
                return True
            named = [name for name in there if name in lowered or name.replace("_", " ") in lowered]
            if "json_schema" in lowered and "response_format" in there:
                named = ["response_format"]
            if not there:
                return False
            self._left_out.append((named or there)[0])
            log.warning("endpoint_refuses", left_out=self._left_out[-1], said=message[:300])
            return True

    def _read(self, completion: Any, prompt: str) -> Judged:
        choice = completion.choices[0] if getattr(completion, "choices", None) else None
        usage = getattr(completion, "usage", None)
        content = (choice.message.content or "") if choice is not None and choice.message is not None else ""
        used = _used(usage, prompt, content)
        if choice is None or choice.message is None:
            raise CallFailed("judge_bad_answer", "no choices in the answer", used=used)
        if choice.finish_reason == "content_filter" or getattr(choice.message, "refusal", None):
            raise CallFailed("judge_refused", "the model declined", retry=False, used=used, reached=True)
        try:
            reply = read_reply(content)
        except BadReply as error:
            why = f"{error}{', which was cut off at its longest' if choice.finish_reason == 'length' else ''}"
            raise CallFailed("judge_bad_answer", why, used=used, reached=True) from None
        return Judged(reply, score_odds(reply, content, _tokens(choice)), used)


def _tokens(choice: Any) -> list[Token]:
    listed = getattr(getattr(choice, "logprobs", None), "content", None) or []
    return [
        Token(entry.token, entry.logprob, tuple((top.token, top.logprob) for top in entry.top_logprobs or ()))
        for entry in listed
    ]


def _used(usage: Any, prompt: str, content: str) -> Used:
    """What the endpoint counted; where it counts nothing, a token per three bytes."""
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if isinstance(read, int) and isinstance(written, int):
        return Used(read, written)
    return Used(len((SYSTEM + prompt).encode("utf-8", "replace")) // 3, len(content.encode("utf-8", "replace")) // 3)


def _failure(error: Exception) -> CallFailed:
    if isinstance(error, openai.APITimeoutError):
        return CallFailed("judge_timeout", "no answer in time", down=True)
    if isinstance(error, openai.APIConnectionError):
        why = error.__cause__ or error
        return CallFailed("judge_unreachable", f"{type(why).__name__}: {why}"[:200], down=True)
    if isinstance(error, openai.RateLimitError):
        if error.code == "insufficient_quota":
            return CallFailed("judge_refused", _said(error), retry=False, fatal=True, free=True)
        return CallFailed("judge_rate_limited", "HTTP 429", wait_seconds=_retry_after(error), free=True)
    if isinstance(error, openai.APIStatusError):
        if error.status_code >= 500 or error.status_code in (408, 409, 425):
            return CallFailed(
                "judge_server_error",
                f"HTTP {error.status_code}",
                down=True,
                wait_seconds=_retry_after(error),
                free=True,
            )
        fatal = error.status_code in (401, 403, 404, 405)
        return CallFailed("judge_refused", _said(error), retry=False, fatal=fatal, free=True)
    return CallFailed("judge_bad_answer", "the answer is no JSON of a chat completion", reached=True)


def _retry_after(error: openai.APIStatusError) -> float | None:
    given = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(given))
    except ValueError:
        return None


def _said(error: openai.APIStatusError) -> str:
    return f"HTTP {error.status_code}: {error.message}"[:300]
