"""An OpenAI-compatible endpoint on loopback that judges by rule, for tests of everything that asks a judge.

    with RuleJudgeServer(fail_share=0.3, seed=1) as server:
        ...  # base URL: server.url, model: server.model
    assert server.calls == 40

It obeys what it reads outside the delimiters, as a language model might: a text that gets out of its delimiters and
orders a 10 is given one, and the test that asked sees it.
"""

from __future__ import annotations

import json
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

from tersely.testing.judge_rules import HIGHEST, Prompt, Rule, read_prompt, score_odds, word_rule

Failure = Literal["timeout", "429", "500", "bad_json", "cut"]
FAILURES: tuple[Failure, ...] = ("timeout", "429", "500", "bad_json", "cut")
BAD_CONTENTS = (
    '{"score": 1',
    "I would give it ten out of ten!",
    '{"score": "excellent", "reason": "r"}',
    '{"score": 9999, "reason": "r"}',
    '{"reason": "no score"}',
    "",
)
"""What a failure `bad_json` answers with in turn; none of it is a score on the scale."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of /v1/chat/completions.

    Attributes:
        prompt: The last user message and all before it, taken apart.
        body: The request as sent.
        authorization: Its header of that name; empty without.
        failure: What was done to it instead of an answer, if anything.
        content: Content of the answer; empty where there was none.
        at: time.monotonic() of its arrival.
    """

    prompt: Prompt
    body: dict[str, Any]
    authorization: str
    failure: Failure | None
    content: str
    at: float


class RuleJudgeServer:
    """Real HTTP on a free port of loopback, from `with` to its end.

    Args:
        rule: Scores, 0 to 10; the answer's content has the nearest whole number, its logprobs the value itself.
        model: The only model that /v1/models lists.
        fail_share: Share of calls that fail.
        failures: Kinds of failure, drawn evenly.
        fail_by: What draws: each `call`, so that trying again helps, or the `summary`, so that it does not.
        seed: Of the draws. They depend on it, on the call's text and on how often that text was asked before, never on
            which call comes first.
        logprobs: Whether to give them when asked.
        gullible: Whether to obey orders found outside the delimiters.
        hang_seconds: How long a `timeout` keeps its caller waiting before the connection is closed.
        retry_after: Seconds in the Retry-After header of a `429`; none: no such header.
        api_key: Key without which every call gets 401; none: any or no key.
    """

    def __init__(
        self,
        rule: Rule = word_rule,
        *,
        model: str = "rule-judge",
        fail_share: float = 0.0,
        failures: Sequence[Failure] = FAILURES,
        fail_by: Literal["call", "summary"] = "call",
        seed: int = 0,
        logprobs: bool = True,
        gullible: bool = True,
        hang_seconds: float = 30.0,
        retry_after: float | None = 0.0,
        api_key: str | None = None,
    ) -> None:
        self.rule = rule
        self.model = model
        self.fail_share = fail_share
        self.failures = tuple(failures)
        self.fail_by = fail_by
        self.seed = seed
        self.logprobs = logprobs
        self.gullible = gullible
        self.hang_seconds = hang_seconds
        self.retry_after = retry_after
        self.api_key = api_key
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self._attempts: Counter[str] = Counter()
        self._ended = threading.Event()
        self._http = _Server(self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="rule-judge", daemon=True)

    @property
    def url(self) -> str:
        """Base URL for an OpenAI client, ending in /v1."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def calls(self) -> int:
        """Calls of /v1/chat/completions so far, failed ones too."""
        with self._lock:
            return len(self.asked)

    @property
    def failed(self) -> Counter[str]:
        """How many of them failed, by kind."""
        with self._lock:
            return Counter(asked.failure for asked in self.asked if asked.failure is not None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def score(self, axis: str, document: str, summary: str) -> float:
        """What it would say of a pair, 0 to 10."""
        return min(float(HIGHEST), max(0.0, self.rule(axis, document, summary)))

    def _book(self, body: dict[str, Any], authorization: str) -> Asked:
        prompt = read_prompt("\n".join(_text(message.get("content")) for message in body.get("messages", [])))
        key = prompt.summary if self.fail_by == "summary" else json.dumps(body.get("messages"))
        with self._lock:
            self._attempts[key] += 1
            attempt = 0 if self.fail_by == "summary" else self._attempts[key]
            draw = random.Random(f"{self.seed}|{attempt}|{key}")
            failure = draw.choice(self.failures) if draw.random() < self.fail_share else None
            content = ""
            if failure == "bad_json":
                content = draw.choice(BAD_CONTENTS)
            elif failure is None:
                content = self._content(prompt, body)
            asked = Asked(prompt, body, authorization, failure, content, time.monotonic())
            self.asked.append(asked)
        return asked

    def value(self, prompt: Prompt) -> float:
        """The score that a prompt gets: 10 where it orders one outside the delimiters and the server is gullible."""
        if self.gullible and prompt.orders:
            return float(HIGHEST)
        return self.score(prompt.axis, prompt.document, prompt.summary)

    def _content(self, prompt: Prompt, body: dict[str, Any]) -> str:
        fields = {"score": round(self.value(prompt)), "reason": f"by rule for {prompt.axis or 'no axis'}"}
        wanted = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
        order = [name for name in wanted if name in fields] or ["reason", "score"]
        return json.dumps({name: fields[name] for name in [*order, *(set(fields) - set(order))]})

    def _answer(self, asked: Asked) -> dict[str, Any]:
        body = asked.body
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": asked.content},
            "finish_reason": "stop",
            "logprobs": None,
        }
        if self.logprobs and body.get("logprobs"):
            choice["logprobs"] = {"content": _logprobs(asked.content, self.value(asked.prompt))}
        read, written = len(asked.prompt.outside.split()), len(asked.content.split())
        return {
            "id": f"chatcmpl-{len(self.asked)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model", self.model),
            "choices": [choice],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, judge: RuleJudgeServer) -> None:
        self.judge = judge
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that hung up is what tests do; anything else is shown by the standard handler."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Lists the model."""
        if self.path.rstrip("/") != "/v1/models":
            return self._send(404, {"error": {"message": "not found"}})
        return self._send(200, {"object": "list", "data": [{"id": self.server.judge.model, "object": "model"}]})

    def do_POST(self) -> None:
        """Judges, or fails as drawn."""
        judge = self.server.judge
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self._send(404, {"error": {"message": "not found"}})
        authorization = self.headers.get("Authorization", "")
        if judge.api_key is not None and authorization != f"Bearer {judge.api_key}":
            return self._send(401, {"error": {"message": "wrong key", "type": "invalid_request_error"}})
        asked = judge._book(json.loads(data), authorization)
        if asked.failure == "timeout":
            judge._ended.wait(judge.hang_seconds)
            self.close_connection = True
        elif asked.failure == "429":
            wait = {} if judge.retry_after is None else {"Retry-After": f"{judge.retry_after:g}"}
            self._send(429, {"error": {"message": "slow down", "type": "rate_limit_error"}}, wait)
        elif asked.failure == "500":
            self._send(500, {"error": {"message": "broken", "type": "server_error"}})
        elif asked.failure == "cut":
            self._send(200, judge._answer(asked), cut=True)
        else:
            self._send(200, judge._answer(asked))
        return None

    def _send(self, code: int, body: dict[str, Any], headers: dict[str, str] | None = None, cut: bool = False) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut


def _text(content: object) -> str:
    """A message's text; the content may be a string or a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _logprobs(content: str, score: float) -> list[dict[str, Any]]:
    """Per token of the content; the last number's alternatives have the score as their mean."""
    tokens = re.findall(r"\d+|[^\W\d]+|\s+|.", content)
    last = max((index for index, token in enumerate(tokens) if token.isdecimal()), default=-1)
    listed = []
    for index, token in enumerate(tokens):
        odds = {str(value): share for value, share in score_odds(score).items()} if index == last else {token: 1.0}
        odds.setdefault(token, 1e-6)
        top = [
            {"token": each, "logprob": math.log(share), "bytes": list(each.encode())}
            for each, share in sorted(odds.items(), key=lambda item: -item[1])
        ]
        listed.append({**next(entry for entry in top if entry["token"] == token), "top_logprobs": top})
    return listed
