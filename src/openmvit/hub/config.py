"""Configuration for transformers: the fields of MViTConfig, and those of the draft of 2025 under their names."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from openmvit.config import MViTConfig
from openmvit.errors import UserError

# The draft's word, or transformers' own, and ours where the value is the same.
_ALIASES = {
    "hidden_size": "embed_dim",
    "in_channels": "in_chans",
    "num_channels": "in_chans",
    "num_attention_heads": "num_heads",
    "patch_kernel_size": "patch_kernel",
    "patch_stride_size": "patch_stride",
    "patch_padding_size": "patch_padding",
    "use_cls_token": "cls_token",
    "attention_pool_first": "pool_first",
    "expand_feature_dimension_in_attention": "dim_mul_in_attention",
    "mode": "pool_mode",
    "stride_kv_adaptive": "adaptive_kv_stride",
    "layer_norm_epsilon": "norm_eps",
    "layer_norm_eps": "norm_eps",
}
# Fields of the draft with one value that networks here have.
_FIXED = {"hidden_activation_function": "gelu", "initializer_range": 0.02}
_FIELDS = tuple(field.name for field in dataclasses.fields(MViTConfig) if field.name != "num_classes")


class MViTV2Config(BackboneConfigMixin, PreTrainedConfig):
    """What a network is, for transformers.

    Args:
        kwargs: fields of `MViTConfig`; `image_size` and `num_frames` for parts of `input_size`; those of the draft
            (`hidden_size`, `stride_kv_adaptive`, ...); and what every configuration of transformers takes, such as
            `num_labels`, `id2label` and `problem_type`. `num_classes` is read as `num_labels`.
        out_features, out_indices: of a backbone: `stem`, `stage1`, ..., or their numbers from 0.
        about: what the checkpoint's card knows beyond this: model, licence, score, data; see ARCHITECTURE.md.
    Raises:
        UserError: if fields contradict each other, or the draft's have a value that no network here has.
    """

    model_type = "mvitv2"
    attribute_map = _ALIASES

    def __init__(
        self,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        about: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "num_classes" in kwargs:
            classes = kwargs.pop("num_classes")
            if kwargs.get("id2label") is None:
                kwargs.setdefault("num_labels", classes)
        network, rest = _network_fields(kwargs)
        record = MViTConfig(**network)
        # A map of labels read from a file stands above a number of labels.
        super().__init__(**rest)
        for name in _FIELDS:
            setattr(self, name, getattr(record, name))
        self.about = about or {}
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(len(record.depths)))]
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)

    @classmethod
    def from_network(cls, network: MViTConfig, **kwargs: Any) -> MViTV2Config:
        """The configuration of one of our networks; `kwargs` as for transformers."""
        return cls(**(network.to_dict() | kwargs))

    def network(self, **changes: Any) -> MViTConfig:
        """The same as `MViTConfig`; classes are the labels.

        Raises:
            UserError: if a field was set to something that does not fit.
        """
        fields = {name: getattr(self, name) for name in _FIELDS}
        return MViTConfig.from_dict(fields | {"num_classes": self.num_labels} | changes)

    @property
    def image_size(self) -> tuple[int, ...]:
        """Nominal (height, width) in pixels."""
        return self.input_size[-2:]

    @image_size.setter
    def image_size(self, size: int | tuple[int, int] | list[int]) -> None:
        self.input_size = _resized(self.input_size, image_size=size)

    @property
    def num_frames(self) -> int | None:
        """Nominal frames of a clip; None for images."""
        return self.input_size[0] if len(self.input_size) == 3 else None

    @num_frames.setter
    def num_frames(self, frames: int) -> None:
        self.input_size = _resized(self.input_size, num_frames=frames)

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return sum(self.depths)

    @property
    def classifier_hidden_size(self) -> int:
        """Channels that the classifier reads."""
        return self.network().num_features

    def validate_output_attentions(self) -> None:
        """Nothing to refuse: attention weights are given with every implementation."""


def _network_fields(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of MViTConfig, and what is left for transformers."""
    found = {name: value for name, value in kwargs.items() if name in _FIELDS}
    rest = {name: value for name, value in kwargs.items() if name not in _FIELDS}
    for alias, name in _ALIASES.items():
        if alias in rest:
            _put(found, name, rest.pop(alias), alias)
    for name, value in _FIXED.items():
        if name in rest and rest.pop(name) != value:
            raise UserError(f"{name} is {kwargs[name]!r}", f"Networks here have {value!r}")
    if "layer_norm_epsilon" in kwargs:
        # The draft's one epsilon; where it pools before projecting, the norms after pooling have torch's default.
        found.setdefault("pool_norm_eps", 1e-5 if kwargs.get("attention_pool_first") else found["norm_eps"])
    if kwargs.get("attention_pool_first"):
        found.setdefault("separate_qkv", True)
    _positions(found, rest)
    _strides(found)
    if "image_size" in rest or "num_frames" in rest:
        size = found.get("input_size", MViTConfig.input_size)
        parts = {name: rest.pop(name) for name in ("image_size", "num_frames") if name in rest}
        found["input_size"] = _resized(size, **{k: v for k, v in parts.items() if v is not None})
    return found, rest


def _put(found: dict[str, Any], name: str, value: Any, alias: str) -> None:
    if name in found and _plain(found[name]) != _plain(value):
        raise UserError(f"{alias} is {value!r} and {name} is {found[name]!r}", "Give one of them")
    found[name] = value


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _positions(found: dict[str, Any], rest: dict[str, Any]) -> None:
    """The draft's two fields about positions."""
    if "use_absolute_positional_embeddings" in rest:
        absolute = "joint" if rest.pop("use_absolute_positional_embeddings") else "none"
        _put(found, "absolute_position", absolute, "use_absolute_positional_embeddings")
    if "relative_positional_embeddings_type" in rest:
        kinds, kind = {"spatial": "decomposed", "": "none"}, rest.pop("relative_positional_embeddings_type")
        if kind not in kinds:
            raise UserError(f"relative_positional_embeddings_type is {kind!r}", "Accepted: 'spatial' and ''")
        _put(found, "relative_position", kinds[kind], "relative_positional_embeddings_type")


def _strides(found: dict[str, Any]) -> None:
    """The draft gives a query stride per stage, and an adaptive K/V stride beside explicit ones."""
    stride = found.get("stride_q")
    if stride and isinstance(stride[0], list | tuple):
        first, later = _plain(stride[0]), [_plain(s) for s in stride[1:]]
        if any(s != 1 for s in first) or any(s != later[0] for s in later):
            raise UserError(f"stride_q is {stride}", "Give stride 1 for the first stage and one stride for the others")
        found["stride_q"] = later[0] if later else first
    if found.get("stride_kv") is not None and "adaptive_kv_stride" not in found:
        found["adaptive_kv_stride"] = None


def _resized(
    size: tuple[int, ...], image_size: int | tuple[int, int] | list[int] | None = None, num_frames: int | None = None
) -> tuple[int, ...]:
    """A nominal input size with other pixels or frames."""
    if num_frames is not None and len(size) < 3:
        raise UserError(f"num_frames is {num_frames} and input_size {tuple(size)} has no frames", "Leave it out")
    if image_size is not None:
        size = (*size[:-2], *((image_size, image_size) if isinstance(image_size, int) else image_size))
    return tuple(size) if num_frames is None else (num_frames, *size[1:])
