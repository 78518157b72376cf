"""A call that brought no answer, and what may be done about it."""

from __future__ import annotations

from tersely.judge.limits import Used


class CallFailed(Exception):
    """A call without a usable answer.

    Args:
        reason: As in the results: judge_timeout, judge_rate_limited, judge_server_error, judge_unreachable,
            judge_bad_answer, judge_refused, judge_circuit_open, judge_budget, judge_cancelled.
        detail: What happened, in words.
        retry: Whether trying again may help.
        down: Whether it speaks for an endpoint that is down; the circuit breaker counts those.
        reached: Whether the endpoint answered, if not as asked.
        fatal: Whether every other call would fail, too.
        free: Whether the endpoint surely charged nothing.
        used: Tokens that it counted, where it did.
        wait_seconds: How long the endpoint asked to be left alone.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        retry: bool = True,
        down: bool = False,
        reached: bool = False,
        fatal: bool = False,
        free: bool = False,
        used: Used | None = None,
        wait_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry = retry
        self.down = down
        self.reached = reached
        self.fatal = fatal
        self.free = free
        self.used = used
        self.wait_seconds = wait_seconds
