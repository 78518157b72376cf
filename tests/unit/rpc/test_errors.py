import grpc
import pytest

from tersely.errors import ConfigValue, TerselyError, WeightsUnavailable, concrete_errors
from tersely.rpc.address import Address, parse_address
from tersely.rpc.errors import code_of, from_rpc_error, to_status


class Sent(grpc.RpcError, grpc.Call):
    """What a client would see of a status."""

    def __init__(self, status: grpc.Status) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status.code

    def details(self) -> str:
        return str(self._status.details)

    def trailing_metadata(self):
        return self._status.trailing_metadata

    def _unused(self, *args):
        raise NotImplementedError

    initial_metadata = add_callback = cancel = is_active = time_remaining = _unused


@pytest.mark.parametrize("cls", list(concrete_errors()), ids=lambda cls: cls.kind)
def test_every_error_survives_the_way(cls: type[TerselyError]) -> None:
    back = from_rpc_error(Sent(to_status(cls("What happened, ü.", "Do this."))), "there")
    assert type(back) is cls
    assert (back.message, back.way_out) == ("What happened, ü.", "Do this.")


def test_a_status_code_tells_programs_of_others_what_it_is_about() -> None:
    assert code_of(WeightsUnavailable("")) is grpc.StatusCode.NOT_FOUND
    assert code_of(ConfigValue("")) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_long_message_still_fits_into_metadata() -> None:
    back = from_rpc_error(Sent(to_status(ConfigValue("m" * 100_000, "w" * 100_000))), "there")
    assert isinstance(back, ConfigValue)
    assert 0 < len(back.message) + len(back.way_out) < 2000


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("a.local:5", "a.local", 5), ("[::1]:50051", "::1", 50051), (" 10.0.0.2:80 ", "10.0.0.2", 80)],
)
def test_addresses_are_read_and_written(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == text.strip()


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:0", "host:65536", "::1:80", "host:eighty"])
def test_what_is_no_address_is_a_config_value(text: str) -> None:
    with pytest.raises(ConfigValue, match="host:port"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert Address(host, 1).loopback is loopback
