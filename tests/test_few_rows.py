"""Linear layers for a few rows: the same numbers, asked another way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from jobs.gpu.few_rows import FEW, forward_of, helps  # noqa: E402

sizes = some.integers(1, 40)


@given(
    shape=some.lists(some.integers(1, 3), min_size=1, max_size=3),
    into=sizes,
    out=sizes,
    bias=some.booleans(),
    turned=some.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_the_numbers_are_the_layers_own(shape: list[int], into: int, out: int, bias: bool, turned: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(into, out, bias=bias)
    given = torch.randn(into, *shape).movedim(0, -1) if turned else torch.randn(*shape, into)
    with torch.inference_mode():
        found, own = forward_of(layer)(given), layer(given)
    assert found.shape == own.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found, own)


@pytest.mark.parametrize("rows", range(1, 8))
def test_only_few_rows_are_asked_another_way(rows: int) -> None:
    layer = nn.Linear(6, 4)
    own = layer.forward
    with torch.inference_mode(), torch.profiler.profile() as profile:
        forward_of(layer)(torch.randn(rows, 6))
    asked = {event.key for event in profile.key_averages()}
    assert ("aten::linear" in asked) == (rows not in FEW)
    assert layer.forward == own


class Scaled(nn.Linear):
    """A kind of its own may do more than multiply."""


def test_what_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(6, 4)
    assert helps(layer)
    assert not helps(nn.Linear(6, 4, dtype=torch.bfloat16))
    assert not helps(nn.Linear(6, 4, device="meta"))
    assert not helps(nn.Embedding(6, 4))
    assert not helps(Scaled(6, 4))
    placed: Any = nn.Linear(6, 4)
    placed.forward = lambda given: given  # as accelerate puts its own in
    assert not helps(placed)
    assert forward_of(placed) is placed.forward
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not helps(layer)
    assert forward_of(layer) == layer.forward


def test_weights_that_change_are_seen() -> None:
    layer: Any = nn.Linear(6, 4)
    forward, given = forward_of(layer), torch.randn(2, 6)
    with torch.inference_mode():
        layer.weight = nn.Parameter(layer.weight * 2)
        torch.testing.assert_close(forward(given), layer(given))
