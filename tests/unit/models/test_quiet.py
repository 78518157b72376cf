from __future__ import annotations

import sys

import pytest

from tersely.errors import PackageMissing
from tersely.models.quiet import quiet_transformers


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PackageMissing, match="transformers") as caught:
        quiet_transformers()
    assert "tersely[model]" in caught.value.way_out
