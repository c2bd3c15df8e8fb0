"""Suppression within groups: the form of graphs is that of eager mode."""

import pytest
import torch

from openmvit.detection.boxes import clip
from openmvit.detection.suppression import suppress


def boxes_of(count, groups):
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([1200.0, 700.0])
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 200], dim=1)
    scores = torch.rand(count, generator=generator)
    return boxes, scores, torch.randint(0, groups, (count,), generator=generator)


@pytest.mark.parametrize(("count", "groups", "limit"), [(0, 1, 5), (1, 1, 5), (300, 5, 40), (3000, 80, 5000)])
def test_tiles_keep_groups_apart(monkeypatch, count, groups, limit):
    given = boxes_of(count, groups)
    expected = suppress(*given, 0.5, limit)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(suppress(*given, 0.5, limit), expected)
    assert len(expected) == min(limit, len(expected)) and (count < 2 or len(expected) < count)


@pytest.mark.parametrize("columns", [4, 12])
def test_boxes_are_cut_to_sides_that_are_tensors(monkeypatch, columns):
    boxes = torch.randn(50, columns, generator=torch.Generator().manual_seed(0)) * 200
    expected = clip(boxes, (90, 130))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(clip(boxes, (torch.tensor(90.0), torch.tensor(130.0))), expected)
