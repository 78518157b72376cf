"""The only kind of RQ job that our workers run: a name from a table, JSON arguments, and nothing else.

RQ resolves the function of a job, its three callbacks and its webhooks from what stands in Redis, whatever the
serializer: who can write there could run `os.system`. Here nothing is ever imported or called by what Redis says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

from rq.job import Job

Function = Callable[..., None]


class JobRefused(Exception):
    """A job that asks for more than a named handler with JSON arguments."""


class AllowedJob(Job):
    """A job whose function is looked up in `functions`; see `allow_only`."""

    functions: ClassVar[Mapping[str, Function]] = {}

    @property
    def func(self) -> Function:
        """The handler.

        Raises:
            JobRefused: It is not in the table, or the job carries an instance, a callback or a webhook.
        """
        name = self.func_name or ""
        if name not in self.functions:
            raise JobRefused(f"{name!r} is no handler of this worker")
        extra = {
            "an instance": self.instance,
            "a success callback": self._success_callback_name,
            "a failure callback": self._failure_callback_name,
            "a stopped callback": self._stopped_callback_name,
            "a webhook": self.webhooks,
        }
        for what, value in extra.items():
            if value:
                raise JobRefused(f"the job carries {what}")
        return self.functions[name]

    @property
    def success_callback(self) -> None:
        """Never any."""
        return

    @property
    def failure_callback(self) -> None:
        """Never any."""
        return

    @property
    def stopped_callback(self) -> None:
        """Never any."""
        return

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Sends nothing."""


def allow_only(functions: Mapping[str, Function]) -> type[Job]:
    """A job class whose jobs can call these functions by these names and nothing else."""
    return cast(type[Job], type("TableJob", (AllowedJob,), {"functions": dict(functions)}))
