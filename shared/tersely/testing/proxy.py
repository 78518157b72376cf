"""A TCP proxy that breaks connections on purpose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_PIECE_BYTES = 64 << 10


class CuttingProxy:
    """Forwards loopback connections to a server and cuts them after so many bytes from the server.

    Args:
        target: host:port of the server.
        cut_after_bytes: Limit for the first connection, the second, and so on; later ones are not cut.
        port: Where to listen; 0: a free port.
    """

    def __init__(self, target: str, cut_after_bytes: Sequence[int] = (), port: int = 0) -> None:
        host, _, target_port = target.rpartition(":")
        self._target = (host, int(target_port))
        self._limits = list(cut_after_bytes)
        self._listener = socket.create_server(("127.0.0.1", port))
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self.bytes_from_server = 0
        self.connections = 0

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
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname(), timeout=1).close()
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _spawn(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, name="cutting-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._closing:
                client.close()
                return
            limit = self._limits.pop(0) if self._limits else None
            self.connections += 1
            self._spawn(self._serve, client, limit)

    def _serve(self, client: socket.socket, limit: int | None) -> None:
        with client:
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                return
            with server:
                server.settimeout(None)
                with self._lock:
                    self._sockets |= {client, server}
                upward = threading.Thread(target=_pump, args=(client, server), daemon=True)
                upward.start()
                self._downward(server, client, limit)
                for each in (client, server):
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
                upward.join()
                with self._lock:
                    self._sockets -= {client, server}

    def _downward(self, server: socket.socket, client: socket.socket, limit: int | None) -> None:
        left = limit
        while left is None or left > 0:
            try:
                piece = server.recv(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
                if not piece:
                    return
                client.sendall(piece)
            except OSError:
                return
            with self._lock:
                self.bytes_from_server += len(piece)
            if left is not None:
                left -= len(piece)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
