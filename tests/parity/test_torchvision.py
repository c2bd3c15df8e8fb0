"""torchvision's clip networks at full size, random weights on both sides: outputs within 1e-4."""

import pytest
import torch
from torchvision.models import video

from openmvit import MViT, create_model
from openmvit.convert import config_from, from_native, to_native

NAMES = {"mvit_v1_b": "mvitv1_base_16x4", "mvit_v2_s": "mvitv2_small_16x4"}


def peer_network(builder):
    torch.manual_seed(0)
    peer = getattr(video, builder)().eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.02))
    return peer


@pytest.mark.parametrize("builder", ["mvit_v2_s", pytest.param("mvit_v1_b", marks=pytest.mark.slow)])
@torch.no_grad()
def test_outputs_of_random_weights_agree(builder):
    peer = peer_network(builder)
    with torch.device("meta"):
        ours = create_model(NAMES[builder]).eval()
    state = to_native("torchvision", ours.config, peer.state_dict())
    ours.load_state_dict(state, assign=True)
    x = torch.randn(1, 3, 16, 224, 224)
    expected = peer(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4)
    back = from_native("torchvision", ours.config, state)
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in peer.state_dict().items())
    smaller = torch.randn(1, 3, 8, 96, 64)
    assert ours(smaller).shape == (1, 400)


@pytest.mark.parametrize("builder", NAMES)
def test_settings_of_torchvision_give_the_same_network(builder, monkeypatch):
    seen = {}
    monkeypatch.setattr(video.mvit, "MViT", lambda **arguments: seen.update(arguments))
    getattr(video, builder)()
    config = config_from("torchvision", seen)
    with torch.device("meta"):
        ours = create_model(NAMES[builder], drop_path_rate=config.drop_path_rate).config
    assert config.blocks() == ours.blocks()
    assert isinstance(MViT(config.replace(embed_dim=8)), MViT)
