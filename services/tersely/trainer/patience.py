"""Going on when the queue server fails the trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from tersely.errors import RedisOutOfMemory, RedisUnreachable
from tersely.trainer.parts import Parts

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
T = TypeVar("T")


class Patience:
    """Does things with Redis, and says in the status what is being waited for.

    Args:
        parts: What the loop works with.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._failed = False
        self._waiting_for: str | None = None

    def wait_for(self, what: str, **facts: object) -> None:
        """Tells people what is being waited for, with other facts for the status."""
        self._waiting_for = what
        self._parts.status.update(waiting_for=what, **facts)

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Does something with Redis; None when the server fails it, after a pause.

        What was not sent or taken then is found again: from the books, and from what this consumer still holds.
        """
        parts = self._parts
        try:
            if self._failed:
                parts.collector.take_again()
                self._failed = False
            result = action()
        except (RedisUnreachable, RedisOutOfMemory) as error:
            self._failed = True
            log.warning("redis fails the trainer; trying again", error=error.message)
            parts.status.update(waiting_for=f"Redis: {error.message}")
            parts.drain.wait(_RETRY_SECONDS)
            return None
        parts.status.update(waiting_for=self._waiting_for)
        return result
