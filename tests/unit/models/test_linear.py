from __future__ import annotations

import pytest
import torch

from tersely.models import linear
from tersely.models.linear import product, use_fast_linears


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 48), (37, 48), (3, 5, 48), (0, 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_product_equals_float64_to_fp32_accuracy(shape: tuple[int, ...], bias: bool) -> None:
    x, weight, shift = normal(*shape), normal(31, 48, seed=1), normal(31, seed=2) if bias else None
    want = x.double() @ weight.double().T + (0 if shift is None else shift.double())
    torch.testing.assert_close(product(x, weight, shift).double(), want, rtol=1e-5, atol=1e-5)


def test_product_takes_transposed_views_and_other_types() -> None:
    x, weight = normal(48, 37), normal(48, 31, seed=1)
    torch.testing.assert_close(product(x.T, weight.T), x.T @ weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(x.T.double(), weight.T.double()), x.T.double() @ weight.double())


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_through_a_fast_linear_are_those_of_the_plain_one(bias: bool) -> None:
    plain, fast = torch.nn.Linear(48, 31, bias=bias), torch.nn.Linear(48, 31, bias=bias)
    fast.load_state_dict(plain.state_dict())
    holder = torch.nn.Sequential(fast)
    changed = use_fast_linears(holder)
    assert changed == (1 if linear.has_fast_product() else 0)
    assert list(holder.state_dict()) == [f"0.{name}" for name in plain.state_dict()]
    gradients = []
    for module in (plain, holder):
        x = normal(2, 9, 48).requires_grad_()
        (module(x) * normal(2, 9, 31, seed=3)).sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_machines_without_gain_keep_their_linears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "has_fast_product", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert use_fast_linears(model) == 0
    assert type(model[0]) is torch.nn.Linear
    x = normal(2, 4)
    assert torch.equal(product(x, model[0].weight), torch.nn.functional.linear(x, model[0].weight))
