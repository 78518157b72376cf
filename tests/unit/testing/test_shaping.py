"""The line carries everything, no faster than its rate, however many use it."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from tersely.testing.shaping import Line, ShapingProxy

ANSWER = bytes(range(256)) * 1200  # 300 kB


def _server() -> tuple[str, socket.socket]:
    """Answers each connection's first byte with ANSWER, and closes it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1)
                connection.sendall(ANSWER)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}", listener


def _fetch(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"x")
        got = bytearray()
        while piece := connection.recv(1 << 16):
            got += piece
    return bytes(got)


def test_all_bytes_come_and_not_sooner_than_the_line_carries_them() -> None:
    target, listener = _server()
    with listener, ShapingProxy(target, 8e6) as proxy:  # 1 MB/s
        began = time.monotonic()
        assert _fetch(proxy.address) == ANSWER
        assert time.monotonic() - began > 0.28
        assert proxy.line.sent_bytes == len(ANSWER)
        listener.shutdown(socket.SHUT_RDWR)


def test_clients_share_one_line() -> None:
    target, listener = _server()
    got: list[bytes] = []
    with listener, ShapingProxy(target, 16e6) as proxy:  # 2 MB/s for 900 kB
        began = time.monotonic()
        threads = [threading.Thread(target=lambda: got.append(_fetch(proxy.address))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began > 0.43
        assert got == [ANSWER] * 3
        listener.shutdown(socket.SHUT_RDWR)


def test_a_line_that_stood_idle_has_not_saved_up() -> None:
    line = Line(1e6)
    time.sleep(0.2)
    began = time.monotonic()
    line.send(100_000)
    assert time.monotonic() - began > 0.08


def test_a_line_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="0 bytes/s"):
        Line(0)


def test_with_a_delay_all_bytes_come_later_but_no_slower() -> None:
    target, listener = _server()
    with listener, ShapingProxy(target, 80e6, delay_seconds=0.2) as proxy:  # 10 MB/s: 0.03 s for the answer
        began = time.monotonic()
        assert _fetch(proxy.address) == ANSWER
        assert time.monotonic() - began > 0.4  # the request's way and the answer's
        assert proxy.line.sent_bytes == len(ANSWER)
        listener.shutdown(socket.SHUT_RDWR)
