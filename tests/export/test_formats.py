"""How a plan is traced: the private switch for open sizes, and what happens without it."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental import _config

from openmvit.export import formats
from openmvit.export.plan import Plan

TRIED_ON = ("2.14", "2.15")
"""Releases of torch whose switch lets a size of 1 into a program."""


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


def plan(any_size):
    x = torch.ones(4, 3)
    open_rows = ({0: Dim("rows", min=1)},)
    return Plan(Doubled(), (x,), open_rows, (["x"], ["y"]), ([{}], [{}]), [(x,)], {}, "", any_size=any_size)


def test_this_release_of_torch_was_tried():
    if not torch.__version__.startswith(TRIED_ON):
        pytest.xfail(f"torch {torch.__version__} is none of {', '.join(TRIED_ON)}: the tests here try it now")


def test_with_the_switch_a_size_is_never_compared_with_one():
    before = _config.backed_size_oblivious
    with formats._any_size(True):
        assert _config.backed_size_oblivious
        program = torch.export.export(plan(True).module, plan(True).inputs, dynamic_shapes=plan(True).dynamic)
    assert _config.backed_size_oblivious == before
    assert torch.equal(program.module()(torch.ones(1, 3)), torch.full((1, 3), 2.0))


def test_without_the_switch_plans_are_traced_all_the_same(monkeypatch):
    monkeypatch.setattr(formats, "_OBLIVIOUS", "gone")
    program = formats.trace(plan(True))
    assert torch.equal(program.module()(torch.ones(5, 3)), torch.full((5, 3), 2.0))
    assert not hasattr(_config, "gone")
