"""The engine of key rules."""

import pytest
import torch

from openmvit import MViTConfig, UserError
from openmvit.convert import to_native, unwrap
from openmvit.convert.keymap import Rule, map_keys, same

RULES = [
    Rule("blocks.{n}.a.{rest}", "stages.{s}.{b}.x.{rest}", lambda t: t + 1, lambda t: t - 1),
    *same("norm.{rest}"),
]


def test_stages_become_blocks_and_back():
    depths = (1, 2, 3)
    source = {f"stages.{s}.{b}.x.w": torch.tensor(10.0 * s + b) for s in range(3) for b in range(depths[s])}
    source["norm.bias"] = torch.tensor(0.0)
    native = map_keys(source, RULES, depths, to_native=True)
    assert list(native) == [f"blocks.{n}.a.w" for n in range(6)] + ["norm.bias"]
    assert native["blocks.4.a.w"] == 22.0
    assert map_keys(native, RULES, depths, to_native=False) == source


def test_a_key_without_a_rule_is_named():
    with pytest.raises(UserError, match=r"1 keys have no rule, such as head\.w"):
        map_keys({"head.w": torch.zeros(1)}, RULES, (1,), to_native=True)


def test_missing_and_surplus_keys_are_named():
    config = MViTConfig(depths=(1,), embed_dim=8)
    with pytest.raises(UserError, match=r"1 keys \(blocks\.7\.w\) too many"):
        to_native("mvit", config, {"blocks.7.w": torch.zeros(1)})


def test_wrapper_names_go():
    keys = ["module.a.w", "blocks.0._checkpoint_wrapped_module.b", "_orig_mod.c"]
    assert list(unwrap({k: torch.zeros(1) for k in keys})) == ["a.w", "blocks.0.b", "c"]
