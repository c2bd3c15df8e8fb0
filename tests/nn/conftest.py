"""What several files of tests of the network's layers need."""

import pytest
import torch

from openmvit.nn.fast.linear import uses_one_dnn


@pytest.fixture
def one_dnn(monkeypatch):
    """oneDNN on any processor."""
    monkeypatch.setenv("OPENMVIT_ONEDNN", "1")
    uses_one_dnn.cache_clear()
    if not uses_one_dnn(torch.float32):
        pytest.skip(f"torch {torch.__version__} has no oneDNN linear layer")
    yield
    uses_one_dnn.cache_clear()
