"""Batches and the norm of the pyramid, against the recorded operations."""

import torch
from torchvision.models.convnext import LayerNorm2d

from detection.golden_ops import operations
from detection.small import config
from openmvit.detection.batching import make_batch
from openmvit.detection.config import DetectorConfig


def test_batches_are_the_recorded_ones():
    ops, own = operations("batch"), config()
    images = [ops["image0"], ops["image1"]]
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    for key, square in (("divisible32", 0), ("square96", 96)):
        batch, sizes = make_batch(images, mean, std, own.divisor, square)
        torch.testing.assert_close(batch, ops[key], rtol=0, atol=1e-6)
        assert sizes == [(33, 50), (40, 27)]


def test_the_norm_of_pyramid_and_heads_is_the_recorded_one():
    ops = operations("ln")
    norm = LayerNorm2d(6, eps=1e-6)
    norm.load_state_dict({"weight": ops["weight"], "bias": ops["bias"]})
    torch.testing.assert_close(norm(ops["x"]), ops["y"], rtol=0, atol=1e-6)


def test_records_go_through_plain_data():
    own = config(square_pad=96, soft_nms="linear")
    assert DetectorConfig.from_dict(own.to_dict()) == own
