"""Both ends of the checkpoint channel for tests: weights that take small steps, a meddling server, a quick client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tersely.rpc.client import dial
from tersely.rpc.errors import errors_as_status
from tersely.rpc.server import GrpcServer
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.client import RetryPolicy, WeightsClient
from tersely.weights.digest import TensorHash, tensor_sha256, weights_sha256
from tersely.weights.servicer import CheckpointServicer

if TYPE_CHECKING:
    from torch import Tensor

QUICK = RetryPolicy(attempts=100, first_pause_seconds=0.01, longest_pause_seconds=0.2, stall_seconds=30)
Meddle = Callable[[int, checkpoint_pb2.FetchWeightsResponse], checkpoint_pb2.FetchWeightsResponse]


def make_weights(seed: int = 0, size: int = 20_000) -> dict[str, Tensor]:
    """A few tensors of both types and odd shapes.

    Args:
        seed: Of their values.
        size: Values in the larger ones.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        "a.bias": torch.randn(5, generator=generator),
        "b.weight": torch.randn(size // 100, 100, generator=generator).bfloat16(),
        "c.empty": torch.zeros(0, 7),
        "d.weight": torch.randn(size, generator=generator).bfloat16(),
    }


def stepped(weights: dict[str, Tensor], seed: int, share: float = 0.05) -> dict[str, Tensor]:
    """The next version: a share of the values moves to the neighbouring float."""
    import torch

    generator = torch.Generator().manual_seed(1000 + seed)
    result = {}
    for name, tensor in weights.items():
        bits = tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32).clone()
        bits += (torch.rand(bits.shape, generator=generator) < share).to(bits.dtype)
        result[name] = bits.view(tensor.dtype)
    return result


def hash_of(weights: dict[str, Tensor]) -> str:
    """The hash that a label of these weights has, from nothing but the tensors."""
    import torch

    names = {torch.bfloat16: "BF16", torch.float32: "F32"}
    return weights_sha256(
        TensorHash(
            name, names[t.dtype], t.shape, tensor_sha256(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        )
        for name, t in weights.items()
    )


def equal_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether weights have the same names, types, shapes and bits."""
    return hash_of(left) == hash_of(right)


def next_version(client: WeightsClient, want: WeightsLabel, held: WeightsLabel | None = None) -> dict[str, Tensor]:
    """Waits until a version is announced, and fetches it.

    Args:
        client: Fetches.
        want: The version.
        held: What the client holds.
    """
    announced = held
    while announced != want:
        seen = client.wait_for_version(20, other_than=announced)
        assert seen is not None
        announced = WeightsLabel.from_proto(seen.weights)
    return client.fetch(want, held)


class MeddlingServicer(CheckpointServicer):
    """Has each message of a fetch go through `meddle`, which may change it, or raise what the caller then gets.

    It is given the message's number in its stream; 0 is the one with the manifest.

    Attributes:
        meddle: What is done; leaves all as it is until it is set.
        deltas_only: Whether full copies are left alone.
        deltas_sent: Streams that brought a delta or an adapter, or a part of one.
        requests: All that came.
    """

    meddle: Meddle = staticmethod(lambda _, message: message)
    deltas_only = False
    deltas_sent = 0

    async def FetchWeights(  # noqa: N802 - gRPC's name
        self, request: checkpoint_pb2.FetchWeightsRequest, context: Any
    ) -> AsyncIterator[checkpoint_pb2.FetchWeightsResponse]:
        """Sends what the servicer sends, meddled with."""
        self.requests.append(request)
        number, is_delta = 0, False
        async for message in super().FetchWeights(request, context):
            if number == 0:
                is_delta = bool(message.base_weights_sha256)
                self.deltas_sent += is_delta
            copy = checkpoint_pb2.FetchWeightsResponse()
            copy.CopyFrom(message)
            if is_delta or not self.deltas_only:
                async with errors_as_status(context):
                    copy = self.meddle(number, copy)
            number += 1
            yield copy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests: list[checkpoint_pb2.FetchWeightsRequest] = []


@contextmanager
def served(servicer: CheckpointServicer, port: int = 0) -> Iterator[str]:
    """A server with this service alone; gives its address."""
    server = GrpcServer(port=port)
    server.add(servicer.register, servicer.close)
    address = server.start()
    try:
        yield address
    finally:
        server.stop(grace_seconds=0)


@contextmanager
def connected(address: str, retry: RetryPolicy = QUICK, run_id: str = "r-1") -> Iterator[WeightsClient]:
    """A client, closed afterwards."""
    with dial(address) as channel:
        client = WeightsClient(channel, run_id, "rollout-test", retry)
        try:
            yield client
        finally:
            client.close()
