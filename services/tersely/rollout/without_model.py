"""What a worker uses whose engine has no model: neither torch nor transformers is loaded, so dozens fit one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tersely.errors import ModelTokenizerMissing
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.client import WeightsClient

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """Stands where a tensor would.

    Attributes:
        shape: The tensor's shape.
    """

    shape: tuple[int, ...]


class ShapesOnly:
    """A weights source whose versions are fetched and checked like any other, and then reduced to their shapes.

    Args:
        client: The worker's side of the checkpoint channel.
    """

    def __init__(self, client: WeightsClient) -> None:
        self._client = client

    def wait_for_version(
        self, timeout_seconds: float | None, other_than: WeightsLabel | None = None
    ) -> checkpoint_pb2.WeightsManifest | None:
        """Newest manifest, other than the one held; None if there is none in time."""
        return self._client.wait_for_version(timeout_seconds, other_than)

    def fetch(self, want: WeightsLabel, base: WeightsLabel | None = None) -> Mapping[str, Tensor]:
        """Fetches a version whole and checked; a `Shape` stands for each tensor."""
        held = self._client.fetch_held(want, base)
        shapes = {tensor.name: Shape(tuple(tensor.shape)) for tensor in held.manifest.tensors}
        return cast("Mapping[str, Tensor]", shapes)

    def manifest(self, label: WeightsLabel) -> checkpoint_pb2.WeightsManifest | None:
        """Manifest of a version that was fetched or announced last; None: it is not known any more."""
        return self._client.manifest(label)


def plain_decoder(folder: Path) -> Callable[[Sequence[int]], str]:
    """Ids to text without special tokens, from tokenizer.json alone.

    Raises:
        ModelTokenizerMissing: There is no usable tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer: Any = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise ModelTokenizerMissing(
            f"{path} can't be read: {str(error)[:200]}", "Use a model with a tokenizer.json."
        ) from None

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    return decode
