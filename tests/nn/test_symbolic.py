"""What an export computes with sizes that are symbols is what eager mode computes with numbers."""

import pytest
import torch

from openmvit.nn.fast.open_sizes import symbolic_index, symbolic_resize
from openmvit.nn.fast.tracing import is_symbolic
from openmvit.nn.position import resize_table
from openmvit.nn.relative import relative_index


@pytest.mark.parametrize(("q", "k"), [(7, 7), (56, 14), (14, 56), (8, 1), (1, 8), (200, 50)])
def test_the_index_is_the_same_integers(q, k):
    assert torch.equal(symbolic_index(q, k, torch.device("cpu")), relative_index(q, k))


@pytest.mark.parametrize("rows", [1, 3, 27, 111])
@pytest.mark.parametrize("length", [1, 3, 13, 27, 55, 110, 111, 223, 399])
def test_a_table_is_resized_as_the_library_does(rows, length):
    table = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))
    exact = resize_table(table.double(), length)
    torch.testing.assert_close(symbolic_resize(table.double(), length), exact, atol=1e-12, rtol=0)
    torch.testing.assert_close(symbolic_resize(table, length), exact.float(), atol=1e-6, rtol=0)


def test_numbers_are_no_symbols():
    assert not is_symbolic(3, 4)
