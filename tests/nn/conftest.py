"""What several files of tests of the network's layers need."""

import pytest
import torch

from openmvit.nn.fast import one_dnn_pays


@pytest.fixture
def one_dnn(monkeypatch):
    """oneDNN on any processor."""
    monkeypatch.setenv("OPENMVIT_ONEDNN", "1")
    one_dnn_pays.cache_clear()
    if not one_dnn_pays(torch.float32):
        pytest.skip(f"torch {torch.__version__} has no oneDNN linear layer")
    yield
    one_dnn_pays.cache_clear()
