"""Necks against their formulas, written out by sums over shifts in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from detection.small import config
from openmvit.detection.pyramid import FeaturePyramid, LastMap, SimplePyramid, make_neck

CHANNELS, WIDTH = 6, 5


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution with an odd kernel that keeps the size: every shift of the padded map on its own."""
    side = weight.shape[-1]
    height, width = x.shape[2:]
    padded = x.new_zeros(*x.shape[:2], height + side - 1, width + side - 1)
    padded[:, :, side // 2 : side // 2 + height, side // 2 : side // 2 + width] = x
    out = bias.view(1, -1, 1, 1).expand(x.shape[0], -1, height, width)
    for a, b in itertools.product(range(side), repeat=2):
        out = out + torch.einsum("nchw,oc->nohw", padded[:, :, a : a + height, b : b + width], weight[:, :, a, b])
    return out


def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution 2 x 2 with stride 2: every token becomes four."""
    out = x.new_zeros(x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    for a, b in itertools.product(range(2), repeat=2):
        out[:, :, a::2, b::2] = torch.einsum("nchw,co->nohw", x, weight[:, :, a, b]) + bias.view(1, -1, 1, 1)
    return out


def normed(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    """One group: mean and variance of the whole map of a picture."""
    mean = x.mean((1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((1, 2, 3), keepdim=True)
    scaled = (x - mean) / (variance + layer.eps).sqrt()
    return scaled * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def halved(x: Tensor) -> Tensor:
    """The largest of every four tokens; what is left over at the end is dropped."""
    height, width = (n // 2 * 2 for n in x.shape[2:])
    x = x[:, :, :height, :width]
    return torch.stack([x[:, :, a::2, b::2] for a, b in itertools.product(range(2), repeat=2)]).amax(0)


def repeated(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Each new token is the old one that its place falls into."""
    rows = [i * x.shape[2] // size[0] for i in range(size[0])]
    columns = [j * x.shape[3] // size[1] for j in range(size[1])]
    return x[:, :, rows][:, :, :, columns]


def pyramid(neck: FeaturePyramid, maps: list[Tensor]) -> list[Tensor]:
    """Coarsest first: a map by itself, plus the one above it; then a filter, and one map more from the coarsest."""
    inner = [(block[0].weight, block[0].bias) for block in neck.fpn.inner_blocks]
    outer = [(block[0].weight, block[0].bias) for block in neck.fpn.layer_blocks]
    joined: list[Tensor] = []
    for x, weights in zip(reversed(maps), reversed(inner), strict=True):
        own = conv(x, *weights)
        joined.insert(0, own + repeated(joined[0], tuple(own.shape[2:])) if joined else own)
    found = [conv(x, *weights) for x, weights in zip(joined, outer, strict=True)]
    return [*found, found[-1][:, :, ::2, ::2]]


def drawn(neck: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.normal_(std=0.5)
    return neck.double()


def same(neck: nn.Module, found: list[Tensor], expected: list[Tensor], x: list[Tensor]) -> None:
    """Outputs, and gradients of the maps and of every parameter."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(one) for one in expected]
    inputs = [*x, *neck.parameters()]
    pairs = zip(*(torch.autograd.grad(maps, inputs, weights) for maps in (found, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (2, 2)])
def test_the_simple_pyramid_is_its_formula(size):
    neck = drawn(SimplePyramid([CHANNELS], config(neck="simple", channels=WIDTH)))
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64, requires_grad=True)
    first, norm, _, second = neck.scales[0]
    maps = [
        doubled(gelu(normed(doubled(x, first.weight, first.bias), norm)), second.weight, second.bias),
        doubled(x, neck.scales[1].weight, neck.scales[1].bias),
        x,
        halved(x),
    ]
    same(neck, neck([x]), pyramid(neck.pyramid, maps), [x])


def test_the_pyramid_of_all_stages_is_its_formula():
    widths = (3, 4, CHANNELS)
    neck = drawn(FeaturePyramid(widths, config(channels=WIDTH)))
    sizes = [(9, 11), (5, 6), (3, 3)]
    maps = [
        torch.randn(2, c, *size, dtype=torch.float64, requires_grad=True) for c, size in zip(widths, sizes, strict=True)
    ]
    same(neck, neck(maps), pyramid(neck, maps), maps)


def test_without_a_pyramid_the_last_map_is_all_there_is():
    neck = make_neck([3, CHANNELS], config(neck="last"))
    maps = [torch.randn(1, 3, 4, 4), torch.randn(1, CHANNELS, 2, 2)]
    assert isinstance(neck, LastMap) and [*neck.parameters()] == []
    (found,) = neck(maps)
    assert found is maps[1]
