from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from tersely.errors import TrainerUnreachable
from tersely.rollout.presence import TrainerPresence

Ready, Failing, Connecting = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.CONNECTING,
)


class Channel:
    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        self.tell = callback


def test_a_trainer_that_is_away_longer_than_the_patience_is_an_error() -> None:
    now = 100.0
    channel = Channel()
    presence = TrainerPresence(channel, "host:1", patience_seconds=60, clock=lambda: now)  # type: ignore[arg-type]
    presence.check()
    channel.tell(Failing)
    now = 130.0
    channel.tell(Connecting)
    channel.tell(Failing)
    now = 159.0
    presence.check()
    now = 161.0
    with pytest.raises(TrainerUnreachable, match="61 s"):
        presence.check()


def test_a_trainer_that_comes_back_starts_the_patience_anew() -> None:
    now = 0.0
    channel = Channel()
    presence = TrainerPresence(channel, "host:1", patience_seconds=60, clock=lambda: now)  # type: ignore[arg-type]
    channel.tell(Failing)
    now = 59.0
    channel.tell(Ready)
    now = 100.0
    channel.tell(Failing)
    now = 159.0
    presence.check()
    now = 161.0
    with pytest.raises(TrainerUnreachable):
        presence.check()
