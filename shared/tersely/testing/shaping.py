"""A TCP proxy that holds a line to a rate, shared by all that go through it."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from types import TracebackType
from typing import Self

_PIECE_BYTES = 32 << 10
_BURST_SECONDS = 0.005
"""How far the line may run ahead of its rate after it stood idle; like a short queue in a switch."""


class Line:
    """A token bucket: whoever sends waits until the line has had the time for all that was sent before.

    Args:
        bytes_per_second: Rate.
    """

    def __init__(self, bytes_per_second: float) -> None:
        if bytes_per_second <= 0:
            raise ValueError(f"a line of {bytes_per_second} bytes/s")
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0
        self.sent_bytes = 0

    def send(self, count: int) -> None:
        """Waits for the turn of `count` bytes; turns are in the order of the calls, so that senders share evenly."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + count / self._rate
            self.sent_bytes += count
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)


class ShapingProxy:
    """Forwards loopback connections to a server; what the server sends is held to one rate for all of them together.

    What clients send is not held: requests for weights are a few hundred bytes.

    Args:
        target: host:port of the server.
        bits_per_second: Rate of the line.
        delay_seconds: How long each byte is on its way, in each direction; setting up a connection is not delayed.
    """

    def __init__(self, target: str, bits_per_second: float, delay_seconds: float = 0.0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.line = Line(bits_per_second / 8)
        self._delay_seconds = delay_seconds
        # As much as is on its way at a time, and a queue as long again; half of all for small pieces.
        self._pieces = 8 + int(4 * delay_seconds * bits_per_second / 8 / _PIECE_BYTES)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False

    @property
    def address(self) -> str:
        """host:port to connect to."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        # Wakes accept(), which closing the listener from another thread does not on Linux.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _spawn(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, name="shaping-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                return
            with server:
                server.settimeout(None)
                # Without, the kernel's buffers take in megabytes that the line has not carried yet.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _PIECE_BYTES)
                with self._lock:
                    self._sockets |= {client, server}
                upward = threading.Thread(target=self._pump, args=(client, server, None), daemon=True)
                upward.start()
                self._pump(server, client, self.line)
                for each in (client, server):
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
                upward.join()
                with self._lock:
                    self._sockets -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, line: Line | None) -> None:
        """Carries bytes until one of the two ends."""
        if not self._delay_seconds:
            with contextlib.suppress(OSError):
                while piece := source.recv(_PIECE_BYTES):
                    if line is not None:
                        line.send(len(piece))
                    sink.sendall(piece)
            return
        on_the_way: queue.Queue[tuple[float, bytes]] = queue.Queue(self._pieces)
        arrive = threading.Thread(target=_deliver, args=(on_the_way, sink), daemon=True)
        arrive.start()
        piece = b"x"
        while piece:
            try:
                piece = source.recv(_PIECE_BYTES)
            except OSError:
                piece = b""
            if line is not None:
                line.send(len(piece))
            on_the_way.put((time.monotonic() + self._delay_seconds, piece))
        arrive.join()


def _deliver(on_the_way: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
    """Hands over each piece when it is due, until an empty one; what can't be delivered is dropped."""
    while True:
        due, piece = on_the_way.get()
        if not piece:
            return
        time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):
            sink.sendall(piece)
