"""Addresses host:port of gRPC servers."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple

from tersely.errors import ConfigValue

TLS, PLAIN = "tls://", "plain://"
"""What may stand before host:port where it isn't decided by the host: TLS on loopback, plaintext beyond it."""
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Address(NamedTuple):
    """Where a server listens; `str()` gives host:port, with brackets round an IPv6 address.

    Attributes:
        host: Name or address.
        port: Its port.
        scheme: `TLS`, `PLAIN`, or empty: TLS beyond loopback where this machine has an identity, else plaintext.
    """

    host: str
    port: int
    scheme: str = ""

    def __str__(self) -> str:
        return self.scheme + self.target

    @property
    def target(self) -> str:
        """The same for gRPC, without the scheme."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def dialable(self) -> Address:
        """The same, with loopback in place of "all addresses": what a process on this machine can dial."""
        return Address(_WILDCARDS.get(self.host, self.host), self.port, self.scheme)


def parse_address(text: str) -> Address:
    """Reads host:port, with a scheme or without.

    Raises:
        ConfigValue: It is not of that form.
    """
    scheme = next((each for each in (TLS, PLAIN) if text.strip().startswith(each)), "")
    host, colon, port = text.strip().removeprefix(scheme).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not colon
        or not host
        or not _PORT.fullmatch(port)
        or not 0 < int(port) < 65536
        or (":" in host and not bracketed)
    ):
        raise ConfigValue(f"{text!r} is not an address of the form host:port.", "Write it like 192.168.1.20:50051.")
    return Address(host[1:-1] if bracketed else host, int(port), scheme)


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this host that nothing listens on now; another program may take it before it is used."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])
