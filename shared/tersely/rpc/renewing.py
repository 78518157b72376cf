"""A channel that shows the newest certificate: gRPC's own keep the one they were made with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Self

import grpc


class RenewingChannel(grpc.Channel):
    """Makes a new channel behind itself when its certificate was renewed; calls under way end on the one they began on.

    Stubs made from it need not be made again.

    Args:
        make: Makes a channel with the identity as it is now.
        mark: Changes when the identity was renewed; asked at every call.
    """

    def __init__(self, make: Callable[[], grpc.Channel], mark: Callable[[], Hashable]) -> None:
        self._make = make
        self._mark = mark
        self._lock = threading.Lock()
        self._shown = mark()
        self._channels = [make()]
        self._watchers: list[tuple[Any, bool]] = []

    def current(self) -> grpc.Channel:
        """The channel for a call that begins now."""
        with self._lock:
            mark = self._mark()
            if mark != self._shown:
                newer = self._make()
                for callback, try_to_connect in self._watchers:
                    self._channels[-1].unsubscribe(callback)
                    newer.subscribe(callback, try_to_connect)
                self._channels.append(newer)
                self._shown = mark
            return self._channels[-1]

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        """Tells of the state of the newest channel."""
        newest = self.current()
        with self._lock:
            self._watchers.append((callback, bool(try_to_connect)))
        newest.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Any) -> None:
        """Tells no more."""
        with self._lock:
            self._watchers = [each for each in self._watchers if each[0] is not callback]
        self.current().unsubscribe(callback)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As of grpc.Channel."""
        return _Method(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As of grpc.Channel."""
        return _Method(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As of grpc.Channel."""
        return _Method(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As of grpc.Channel."""
        return _Method(self, "stream_stream", args, kwargs)

    def close(self) -> None:
        """Closes all of them."""
        with self._lock:
            for channel in self._channels:
                channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Method:
    """A method of a stub, on whichever channel is the newest when it is called."""

    def __init__(self, owner: RenewingChannel, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._owner = owner
        self._kind = kind
        self._args = args
        self._kwargs = kwargs
        self._made: tuple[grpc.Channel, Any] | None = None

    def _current(self) -> Any:
        channel = self._owner.current()
        if self._made is None or self._made[0] is not channel:
            self._made = channel, getattr(channel, self._kind)(*self._args, **self._kwargs)
        return self._made[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._current()(*args, **kwargs)

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        """As of a unary method."""
        return self._current().with_call(*args, **kwargs)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        """As of a unary method."""
        return self._current().future(*args, **kwargs)
