"""Endpoints that refuse parts of a request, as reasoning models and small local servers do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tersely.judge.judging import Pair

ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": '{"reason": "r", "score": 7}'},
        }
    ],
}


class Picky(ThreadingHTTPServer):
    """Refuses a request with HTTP 400 and the message of the first field in `refused` that it has."""

    daemon_threads = True

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Picky

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        said = next((text for field, text in self.server.refused.items() if field in body), None)
        answer = ANSWER if said is None else {"error": {"message": said}}
        data = json.dumps(answer).encode()
        self.send_response(200 if said is None else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def picky() -> Iterator[Picky]:
    server = Picky()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def judged(picky: Picky, make_judge: Any, pairs: int = 1) -> tuple[Any, Any]:
    judge = make_judge(endpoint=picky.url, model="m", concurrency=2)
    return judge, judge.judge_batch([Pair(f"document {number}", "summary") for number in range(pairs)])


@pytest.mark.parametrize(
    "refused",
    [
        {
            "max_tokens": "'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            "logprobs": "You are not allowed to request logprobs from this model",
            "temperature": "'temperature' does not support 0.0 with this model.",
        },
        {"response_format": "unknown field response_format: json_schema", "seed": "seed: extra inputs not permitted"},
        dict.fromkeys(("logprobs", "response_format", "temperature"), "bad request"),
    ],
    ids=["reasoning model", "named fields", "says nothing"],
)
def test_what_is_refused_is_left_out_shown_and_not_sent_again(picky: Picky, make_judge: Any, refused: Any) -> None:
    picky.refused = refused
    judge, found = judged(picky, make_judge, pairs=3)
    assert {axis.score for judgement in found for axis in judgement.axes.values()} == {0.7}
    assert set(judge.counts()["left_out"]) == set(refused) - {"max_tokens"}
    assert not set(refused) & set(picky.bodies[-1])
    assert judge.counts()["failures"] == {}


def test_a_text_that_is_too_long_is_refused_and_nothing_else_left_out(picky: Picky, make_judge: Any) -> None:
    picky.refused = {"messages": "This model's maximum context length is 2048 tokens"}
    judge, found = judged(picky, make_judge)
    assert {axis.error for axis in found[0].axes.values()} == {"judge_refused"}
    assert judge.counts()["left_out"] == []
    assert len(picky.bodies) == 4


def test_tokens_that_the_endpoint_does_not_count_are_counted_by_us(picky: Picky, make_judge: Any) -> None:
    judge, _ = judged(picky, make_judge)
    used = judge.budget.used
    assert used.read > 1000
    assert used.written > 0
