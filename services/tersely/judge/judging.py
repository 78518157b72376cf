"""Summaries in, judgements out: cache, limits, retries and rounds around single calls."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import tenacity  # type: ignore[import-not-found,unused-ignore]

from tersely.config.judge import JudgeSection
from tersely.judge.cache import Answer, AnswerCache, answer_key, default_folder
from tersely.judge.endpoint import Endpoint, Judged
from tersely.judge.failures import CallFailed
from tersely.judge.geval import GEvalAxis, check_deepeval
from tersely.judge.judgement import AxisResult, Judgement, combine
from tersely.judge.limits import Budget, Circuit, Outcome, RateLimit, Used
from tersely.judge.pool import DaemonPool
from tersely.judge.rubrics import ALL, Rubric, fingerprint, rubrics_version

log = structlog.get_logger(__name__)
PATIENCE_COOLDOWNS = 4


class Axis(Protocol):
    """What measures one axis; `GEvalAxis` in earnest."""

    def measure(self, document: str, summary: str, ask: Callable[[str], Judged]) -> Answer:
        """Judges a summary."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """A document and a summary of it."""

    document: str
    summary: str


@dataclass(frozen=True, slots=True)
class _Round:
    """One round of one axis: an answer or the reason for none."""

    answer: Answer | None
    failure: CallFailed | None
    cached: bool
    tokens: int
    calls: int


class Judge:
    """Judges with one endpoint; safe to use from several threads.

    Args:
        settings: With an endpoint.
        patient: Whether to wait for an endpoint that is down (up to four cooldowns) instead of abstaining at once.

    Raises:
        PackageMissing: DeepEval is not installed here.
        ConfigValue, JudgeCache: A setting can't be used.
    """

    def __init__(self, settings: JudgeSection, *, patient: bool = False) -> None:
        check_deepeval()
        self.settings = settings
        self.endpoint = Endpoint(settings)
        self.circuit = Circuit(settings.circuit_failures, settings.circuit_cooldown_seconds)
        self.budget = Budget(
            settings.budget_tokens,
            settings.budget_cost,
            settings.price_read_per_million or 0.0,
            settings.price_written_per_million or 0.0,
        )
        self.fatal: CallFailed | None = None
        self.answered = 0
        self._patient = patient
        self._rate = RateLimit(settings.requests_per_minute)
        self._cache = AnswerCache(settings.cache or default_folder())
        self._axes: dict[str, Axis] = {rubric.axis: GEvalAxis(rubric) for rubric in ALL}
        self._pool = DaemonPool(settings.concurrency, "judge")
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._in_flight: dict[str, Future[_Round]] = {}
        self._closed = threading.Event()

    def judge_all(
        self, pairs: Iterable[Pair | None], cancelled: threading.Event | None = None
    ) -> Iterator[Judgement | None]:
        """Judges pairs as they come, a bounded number at a time.

        Args:
            pairs: None stands for a row that can't be judged, and comes back as None.
            cancelled: Once set, what is left abstains with judge_cancelled.

        Yields:
            One judgement per pair, in order.

        Raises:
            ConfigValue, JudgeEndpoint: The model is not named, and the endpoint does not name one.
            JudgeCache, DiskFull.
        """
        judge = self.endpoint.model()
        stop = cancelled or threading.Event()
        window: deque[list[list[Future[_Round]]] | None] = deque()
        for pair in pairs:
            window.append(None if pair is None else self._begin(pair, judge, stop))
            if len(window) > max(8, self.settings.concurrency):
                yield self._finish(window.popleft(), judge)
        while window:
            yield self._finish(window.popleft(), judge)

    def judge_batch(self, pairs: Sequence[Pair], cancelled: threading.Event | None = None) -> list[Judgement]:
        """Judges pairs; as `judge_all`."""
        return [found for found in self.judge_all(pairs, cancelled) if found is not None]

    def counts(self) -> dict[str, Any]:
        """What it did so far: calls, cache hits, failures by reason, tokens, cost, what the endpoint refused."""
        with self._lock:
            counts = dict(self._counts)
        used = self.budget.used
        failures = {name.removeprefix("failed "): counts[name] for name in counts if name.startswith("failed ")}
        return {
            "calls": counts.get("calls", 0),
            "answers": counts.get("answers", 0),
            "weighted": counts.get("weighted", 0),
            "cache_hits": counts.get("cache_hits", 0),
            "failures": failures,
            "tokens": {"read": used.read, "written": used.written},
            "cost": round(self.budget.cost, 6),
            "circuit_opened": self.circuit.opened,
            "refused_by_budget": self.budget.refused,
            "left_out": list(self.endpoint.left_out),
        }

    def close(self) -> None:
        """Ends: what has not begun never does, and what is going on is not waited for."""
        self._closed.set()
        self._pool.close()
        self._cache.close()
        self.endpoint.close()

    def _begin(self, pair: Pair, judge: str, stop: threading.Event) -> list[list[Future[_Round]]]:
        return [
            [self._submit(rubric, pair, judge, number, stop) for number in range(self.settings.rounds)]
            for rubric in ALL
        ]

    def _finish(self, axes: list[list[Future[_Round]]] | None, judge: str) -> Judgement | None:
        if axes is None:
            return None
        results, tokens, calls = {}, 0, 0
        for rubric, futures in zip(ALL, axes, strict=True):
            rounds = [future.result() for future in futures]
            tokens += sum(one.tokens for one in rounds)
            calls += sum(one.calls for one in rounds)
            failure = next((one.failure for one in rounds if one.failure is not None), None)
            results[rubric.axis] = AxisResult.of(
                [one.answer for one in rounds if one.answer is not None],
                cached=all(one.cached for one in rounds),
                error=failure.reason if failure else "",
                detail=failure.detail if failure else "",
            )
        return combine(results, judge=judge, rubrics=rubrics_version(), tokens=tokens, calls=calls)

    def _submit(self, rubric: Rubric, pair: Pair, judge: str, number: int, stop: threading.Event) -> Future[_Round]:
        temperature = self.settings.used_temperature
        key = answer_key(judge, fingerprint(rubric), pair.document, pair.summary, number, temperature)
        with self._lock:
            # The same question twice at a time is one call.
            found = self._in_flight.get(key)
            if found is not None:
                return found
            future = self._pool.submit(self._round, rubric, pair, judge, number, key, stop)
            self._in_flight[key] = future
        future.add_done_callback(lambda _: self._forget(key))
        return future

    def _forget(self, key: str) -> None:
        with self._lock:
            self._in_flight.pop(key, None)

    def _round(self, rubric: Rubric, pair: Pair, judge: str, number: int, key: str, stop: threading.Event) -> _Round:
        found = self._cache.get(key)
        if found is not None:
            self._count("cache_hits")
            return _Round(found, None, True, 0, 0)
        attempts = _Attempts(self, number, stop)
        try:
            answer = self._axes[rubric.axis].measure(pair.document, pair.summary, attempts.ask)
        except CallFailed as failure:
            return _Round(None, failure, False, attempts.tokens, attempts.calls)
        self._count("answers", "weighted" if answer.weighted else "")
        self._cache.put(key, answer, judge=judge, rubric=rubric.version)
        return _Round(answer, None, False, attempts.tokens, attempts.calls)

    def _count(self, *names: str) -> None:
        with self._lock:
            self._counts.update(name for name in names if name)


class _Attempts:
    """The calls of one round: permission, call, booking; again as long as that may help."""

    def __init__(self, judge: Judge, number: int, stop: threading.Event) -> None:
        self._judge = judge
        self._number = number
        self._stop = stop
        self.tokens = 0
        self.calls = 0

    def ask(self, prompt: str) -> Judged:
        """Calls until there is an answer.

        Raises:
            CallFailed: The last failure.
        """
        settings = self._judge.settings
        backoff = tenacity.wait_random_exponential(settings.backoff_seconds, settings.backoff_max_seconds)

        def wait(state: tenacity.RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome is not None else None
            asked = getattr(failure, "wait_seconds", None) or 0.0
            return float(max(backoff(state), min(asked, settings.backoff_max_seconds)))

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(settings.attempts),
            wait=wait,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, CallFailed) and error.retry),
            sleep=self._sleep,
            reraise=True,
        )
        judged: Judged = retrying(self._once, prompt)
        return judged

    def _once(self, prompt: str) -> Judged:
        judge = self._judge
        most = judge.endpoint.most(prompt)
        self._check_stop()
        if not judge.budget.take(most):
            raise CallFailed("judge_budget", "the budget is used up", retry=False)
        used = Used(0, 0)
        outcome: Outcome | None = None
        try:
            self._wait_for_circuit()
            outcome = "not made"
            self._sleep(judge._rate.reserve())
            self._check_stop()
            self.calls += 1
            judge._count("calls")
            # A call that breaks off in our own code is booked as one that may have been charged.
            used, outcome = most, "failed"
            judged = judge.endpoint.ask(prompt, self._number)
            used, outcome = judged.used, "answered"
            judge.answered += 1
            return judged
        except CallFailed as failure:
            judge._count(f"failed {failure.reason}")
            if outcome == "failed":
                outcome = "failed" if failure.down or failure.fatal else "answered"
                used = failure.used or Used(0 if failure.free else most.read, 0)
                if failure.fatal:
                    judge.fatal = failure
                if failure.wait_seconds:
                    judge._rate.hold(min(failure.wait_seconds, judge.settings.backoff_max_seconds))
            raise
        finally:
            judge.budget.settle(most, used)
            self.tokens += used.read + used.written
            if outcome is not None:
                judge.circuit.book(outcome)

    def _wait_for_circuit(self) -> None:
        judge = self._judge
        deadline = time.monotonic() + PATIENCE_COOLDOWNS * judge.settings.circuit_cooldown_seconds
        while not judge.circuit.allows():
            if judge.fatal or not judge.answered or not judge._patient or time.monotonic() >= deadline:
                raise CallFailed("judge_circuit_open", "the endpoint is down and left alone", retry=False)
            self._sleep(0.2)
            self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set() or self._judge._closed.is_set():
            raise CallFailed("judge_cancelled", "nobody waits for the answer any more", retry=False)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._stop.wait(seconds)
