"""timm's MViTv2 at full size, random weights on both sides: outputs within 1e-4."""

import pytest
import timm
import torch

from openmvit import MViT, create_model
from openmvit.config import MViTConfig
from openmvit.convert import config_from, from_native, to_native


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.02, generator=generator))
    return model.eval()


@pytest.mark.parametrize("size", ["tiny", "small", "base", pytest.param("large", marks=pytest.mark.slow)])
@torch.no_grad()
def test_outputs_of_random_weights_agree(size):
    peer = randomised(timm.create_model(f"mvitv2_{size}"))
    with torch.device("meta"):
        ours = create_model(f"mvitv2_{size}").eval()
    state = to_native("timm", ours.config, peer.state_dict())
    ours.load_state_dict(state, assign=True)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = peer(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4)
    back = from_native("timm", ours.config, state)
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in peer.state_dict().items())


def test_settings_of_timm_give_the_same_network():
    from timm.models.mvitv2 import MultiScaleVitCfg

    for size in ("tiny", "small", "base", "large"):
        fields = dict(vars(timm.models.mvitv2.model_cfgs[f"mvitv2_{size}"]))
        assert isinstance(timm.models.mvitv2.model_cfgs[f"mvitv2_{size}"], MultiScaleVitCfg)
        config = config_from("timm", fields)
        assert config.blocks() == create_blocks(size, config.drop_path_rate)


def create_blocks(size, drop_path_rate):
    with torch.device("meta"):
        return create_model(f"mvitv2_{size}", drop_path_rate=drop_path_rate).config.blocks()


@torch.no_grad()
def test_plain_vit_is_the_same_network_without_pools():
    peer = randomised(timm.create_model("vit_small_patch16_224"))
    config = MViTConfig(
        depths=(12,), embed_dim=384, num_heads=6, patch_kernel=(16, 16), patch_stride=(16, 16), patch_padding=(0, 0),
        kernel_qkv=(1, 1), adaptive_kv_stride=(1, 1), stride_q=(1, 1), full_q_pooling=False, residual_pooling=False,
        relative_position="none", absolute_position="joint", cls_token=True,
    )  # fmt: skip
    ours = MViT(config).eval()
    state = {k.replace("head.", "head.projection."): v for k, v in peer.state_dict().items()}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), peer(x), rtol=0, atol=1e-4)
