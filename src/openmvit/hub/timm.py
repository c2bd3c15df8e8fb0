"""timm: importing this makes `timm.create_model("openmvit_mvitv2_small")` work, for every image classifier by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.errors import UserError
from openmvit.hub.recording import as_rows
from openmvit.model import MViT
from openmvit.weights import cards
from openmvit.zoo.models import load_pretrained

__all__ = ["PREFIX", "TimmMViT"]

PREFIX = "openmvit_"
_IMAGES = [name for name in ARCHITECTURES if model_config(name).ndim == 2]
_PLAIN = {"crop_ratio": 0.875, "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class TimmMViT(MViT):
    """An `MViT` with timm's way of asking: the same network, parameters and outputs.

    Args:
        name: of an architecture here.
        weights: False for fresh ones, or what `openmvit.create_model` takes as `pretrained`.
        changes: as for `openmvit.create_model`.
    """

    def __init__(self, name: str, weights: bool | str = False, **changes: Any) -> None:
        super().__init__(model_config(name, **changes))
        config = self.config
        self.num_classes = config.num_classes
        self.num_features = self.head_hidden_size = config.num_features
        ends, side = [i + 1 for i, last in enumerate(self.ends_stage) if last], config.patch_stride[-1]
        self.feature_info: list[dict[str, Any]] = []
        for end, channels in zip(ends, config.stage_dims, strict=True):
            self.feature_info.append({"num_chs": channels, "reduction": side, "module": f"blocks.{end - 1}"})
            side *= config.stride_q[-1]
        if weights is not False:
            load_pretrained(self, name, weights)

    def get_classifier(self) -> nn.Module:
        """The linear layer; an identity where there are no classes."""
        return self.head.get_submodule("projection")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; `global_pool` is `token` or `avg`, None for what the network has."""
        if global_pool is not None:
            self.config = self.config.replace(global_pool=global_pool)
        super().reset_classifier(num_classes)
        self.num_classes = num_classes

    def forward_features(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens `[B, N, C]` of the last stage, a class token first; the final norm belongs to `forward_head`."""
        return as_rows(self.stages(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # type: ignore[override]
        """Final norm, pooling and classifier of `forward_features`; `pre_logits` gives what the classifier reads."""
        rows = int(self.config.cls_token)
        cls, read = x[:, :rows] if rows else None, []
        hook = self.head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
        try:
            logits = super().forward_head(x[:, rows:], cls)
        finally:
            hook.remove()
        return read[0] if pre_logits else logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits: `[B, C, h, w]` -> `[B, num_classes]`."""
        return super().forward_head(*self.stages(x)[-1])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One map `[B, C, h, w]` per stage; with `intermediates_only=False` behind `forward_features`.

        Args:
            indices: stages from 0, negative ones from the last; a number n means the last n, None all.
            norm, output_fmt: False and `NCHW` only.
            kwargs: what else timm hands on (`stop_early`), which changes no output.
        Raises:
            UserError: for another norm or format.
        """
        if norm or str(getattr(output_fmt, "value", output_fmt)) != "NCHW":
            raise UserError(f"norm is {norm} and output_fmt {output_fmt}", "Accepted: norm=False, output_fmt='NCHW'")
        stages = self.stages(x)
        chosen = feature_take_indices(len(stages), indices)[0]
        maps = [stages[i][0].movedim(-1, 1) for i in chosen]
        return maps if intermediates_only else (as_rows(stages[-1]), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of these stages do not need; returns the stages, counted from 0."""
        chosen, last = feature_take_indices(len(self.feature_info), indices)
        ends = [i + 1 for i, last in enumerate(self.ends_stage) if last]
        shorter = ends[last] < len(self.blocks)
        self.blocks = self.blocks[: ends[last]]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0)
        return chosen

    def no_weight_decay(self) -> set[str]:
        """Names of the position tables and of the class token, which the published recipes do not decay."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2].startswith(_NOT_DECAYED)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups for layer decay: the stem, every block, the norm behind them."""
        stem = r"^(?:patch_embed|cls_token|pos_embed|norm_stem)"
        return {"stem": stem, "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}


_NOT_DECAYED = ("pos_embed", "rel_pos", "cls_token")


def _profile(preprocessing: dict[str, Any], num_classes: int, side: int, **about: Any) -> dict[str, Any]:
    """timm's words for our preprocessing."""
    return {
        "num_classes": num_classes,
        "input_size": (3, side, side),
        "crop_pct": preprocessing["crop_ratio"] or 1.0,
        "crop_mode": "center" if preprocessing["crop_ratio"] else "squash",
        "interpolation": preprocessing["interpolation"],
        "mean": tuple(preprocessing["mean"]),
        "std": tuple(preprocessing["std"]),
        "first_conv": "patch_embed.proj",
        "classifier": "head.projection",
        **about,
    }


def _profiles() -> dict[str, Any]:
    """`name.tag` of every released file, and the names of networks without any."""
    found: dict[str, dict[str, Any]] = {}
    for name in _IMAGES:
        config = model_config(name)
        own = [card for card in cards() if card.model == name and "crop_ratio" in card.preprocessing]
        for card in own:
            side, about = card.preprocessing["imgsz"], {"url": card.url, "license": card.licence.lower()}
            found[f"{PREFIX}{name}.{card.tag}"] = _profile(card.preprocessing, card.num_classes, side, **about)
        if not own:
            found[f"{PREFIX}{name}"] = _profile(_PLAIN, config.num_classes, config.input_size[-1])
    return found


default_cfgs = generate_default_cfgs(_profiles())


def _entry(name: str) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        given = kwargs.get("pretrained_cfg")
        about = given if isinstance(given, dict) else asdict(given) if given is not None else {}
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        file = overlay.get("file") or about.get("file")
        weights = str(file or about.get("tag") or True) if pretrained else False
        # The files are read by our own converters, before timm cuts a network down to its features.
        build = partial(TimmMViT, name, True if weights == "True" else weights)
        features = {"out_indices": kwargs.pop("out_indices", None), "feature_cls": "getter"}
        if features["out_indices"] is None:
            features["out_indices"] = len(model_config(name).depths)
        return build_model_with_cfg(build, PREFIX + name, False, feature_cfg=features, **kwargs)

    entry.__name__ = entry.__qualname__ = PREFIX + name
    entry.__doc__ = f"{name} of openmvit."
    return entry


for _name in _IMAGES:
    globals()[PREFIX + _name] = register_model(_entry(_name))
