import pytest
import torch
from torch.nn import functional as F

from common.precision import frozen_precision
from evaluation.cost import count_flops


@torch.no_grad()
@pytest.mark.parametrize("shape", [(5,), (3, 7, 5), (1, 0, 5)])
def test_linear_layers_of_frozen_models_compute_what_others_do(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape, dtype=torch.float64), torch.randn(4, 5).double(), torch.randn(4).double()
    for b in (bias, None):
        exact = F.linear(x, weight, b)
        with frozen_precision(torch.device("cpu")):
            found = F.linear(x.float(), weight.float(), None if b is None else b.float())
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)


@torch.no_grad()
def test_their_operations_are_counted() -> None:
    with frozen_precision(torch.device("cpu")):
        assert count_flops(lambda: F.linear(torch.randn(2, 3, 5), torch.randn(4, 5))) == 2 * 2 * 3 * 5 * 4


def test_they_keep_gradients_where_someone_wants_some() -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    with frozen_precision(torch.device("cpu")):
        F.linear(torch.randn(2, 5), weight).sum().backward()
    assert weight.grad is not None
