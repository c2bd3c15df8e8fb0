"""What a network of ours can be compared with."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from torch import nn

from openmvit.architectures import model_config
from openmvit.errors import UserError, did_you_mean

SAME: dict[str, dict[str, str]] = {
    "timm": {name: name for name in ("mvitv2_tiny", "mvitv2_small", "mvitv2_base", "mvitv2_large")},
    "torchvision": {"mvitv2_small_16x4": "mvit_v2_s", "mvitv1_base_16x4": "mvit_v1_b"},
}
"""Package -> our name of a network -> its own; the package's name is also that of the key table of `convert`."""


@dataclass(frozen=True)
class Peer:
    """A network of another package.

    Args:
        package: timm or torchvision.
        network: its name there.
        same: whether it is our network, so that it can hold our weights and must give our outputs.
    """

    package: str
    network: str
    same: bool

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.package if self.same else f"{self.package}:{self.network}"

    @property
    def version(self) -> str:
        """Version of the package; loads it."""
        return str(getattr(importlib.import_module(self.package), "__version__", ""))

    def build(self) -> nn.Module:
        """The network with random weights, without dropout and stochastic depth.

        Raises:
            UserError: if the package is not installed, or knows no such network.
        """
        try:
            package = importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            raise UserError(f"{self.package} is not installed", f"Run: pip install {self.package}") from error
        if self.package == "torchvision":
            from torchvision.models import video

            return getattr(video, self.network)(stochastic_depth_prob=0.0, dropout=0.0)
        if not package.is_model(self.network):
            raise UserError(f"timm has no network {self.network!r}", did_you_mean(self.network, package.list_models()))
        return package.create_model(self.network, pretrained=False, drop_path_rate=0.0)


def default_package(name: str) -> str:
    """The package that people use for a network with so many axes: timm for images, torchvision for clips."""
    return "timm" if model_config(name).ndim == 2 else "torchvision"


def find_peer(name: str, against: str) -> Peer:
    """The other side of a comparison.

    Args:
        name: our network.
        against: a package that has the same network, or `timm:NETWORK` for any other one.
    Raises:
        UserError: if the package is unknown, or does not have the network.
    """
    package, _, network = against.partition(":")
    if package not in SAME or (network and package != "timm"):
        raise UserError(f"--against is {against!r}", did_you_mean(against, [*SAME, "timm:NETWORK"]))
    if network:
        return Peer(package, network, False)
    if name not in SAME[package]:
        raise UserError(f"{package} has no network {name!r}", did_you_mean(name, SAME[package]))
    return Peer(package, SAME[package][name], True)
