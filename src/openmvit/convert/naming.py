"""Key tables: how each project names the tensors of a network, and which of its keys no network here needs.

A table takes the configuration, because some projects name keys by it; without one it holds every name the project has,
which is enough to read a file but not to write one.
"""

from __future__ import annotations

from torch import Tensor

from openmvit.config import MViTConfig
from openmvit.convert.keymap import Rule, same

# Masked pre-training: mask token, prediction head, fixed filters of its targets; its network has no norm and no head.
PRETRAINING = (r"(backbone\.)?mask_token", r"pred_head\..+", r"hogs\..+", r"neck\..+", r"target_generator\..+")


def mvit(_: MViTConfig | None) -> list[Rule]:
    """facebookresearch/mvit: our parameter names are the authors' names."""
    return same("{rest}")


def slowfast(config: MViTConfig | None) -> list[Rule]:
    """facebookresearch/SlowFast: the same names; its image networks pool with 3D convolutions over one frame."""
    rules = [] if config is None or config.ndim == 3 else _flat_pools("blocks.{n}")
    if config is None or config.reversible != "none":
        rules = _reversible(config) + rules
    return rules + same("{rest}")


def _flat_pools(block: str) -> list[Rule]:
    return [
        Rule(
            f"blocks.{{n}}.attn.pool_{name}.weight",
            f"{block}.attn.pool_{name}.weight",
            to_native=lambda t: t.squeeze(2) if t.dim() == 5 else t,
            from_native=lambda t: t.unsqueeze(2),
        )
        for name in "qkv"
    ]


def _reversible(config: MViTConfig | None) -> list[Rule]:
    layer = "rev_backbone.layers.{n}"
    names = {
        "norm1": "F.norm", "attn": "F.attn", "norm2": "G.norm", "mlp": "G.mlp", "proj": "res_proj",
        "fuse": "pre_q_fuse.fuse_fn",
    }  # fmt: skip
    flat = [] if config is None or config.ndim == 3 else _flat_pools(f"{layer}.F")
    return flat + [Rule(f"blocks.{{n}}.{o}.{{rest}}", f"{layer}.{t}.{{rest}}") for o, t in names.items()]


def slowfast_strays(config: MViTConfig) -> tuple[str, ...]:
    """The released reversible clip network holds rows of a class token that it does not have."""
    return () if config.reversible == "none" else ("cls_token", "pos_embed_class")


def timm(config: MViTConfig | None) -> list[Rule]:
    """timm numbers blocks within stages and names the skip projection by where widths grow."""
    shortcuts = ["attn", "mlp"] if config is None or config.dim_mul_in_attention else ["mlp"]
    return [
        *(Rule("blocks.{n}.proj.{rest}", f"stages.{{s}}.blocks.{{b}}.shortcut_proj_{x}.{{rest}}") for x in shortcuts),
        Rule("blocks.{n}.{rest}", "stages.{s}.blocks.{b}.{rest}"),
        Rule("head.projection.{rest}", "head.fc.{rest}"),
        *same("patch_embed.proj.{rest}", "norm.{rest}", "cls_token", "pos_embed"),
    ]


def torchvision(_: MViTConfig | None) -> list[Rule]:
    """torchvision keeps tokens without leading axes, and pools and norms as members of a sequence."""

    def row(t: Tensor) -> Tensor:
        return t.reshape(1, *(1,) * (2 - t.dim()), *t.shape)

    return [
        Rule("patch_embed.proj.{rest}", "conv_proj.{rest}"),
        Rule("cls_token", "pos_encoding.class_token", row, lambda t: t[0, 0]),
        Rule("pos_embed_class", "pos_encoding.class_pos", row, lambda t: t[0, 0]),
        Rule("pos_embed_spatial", "pos_encoding.spatial_pos", row, lambda t: t[0]),
        Rule("pos_embed_temporal", "pos_encoding.temporal_pos", row, lambda t: t[0]),
        Rule("blocks.{n}.attn.proj.{rest}", "blocks.{n}.attn.project.0.{rest}"),
        *(Rule(f"blocks.{{n}}.attn.pool_{x}.weight", f"blocks.{{n}}.attn.pool_{x}.pool.weight") for x in "qkv"),
        *(
            Rule(f"blocks.{{n}}.attn.norm_{x}.{{rest}}", f"blocks.{{n}}.attn.pool_{x}.norm_act.0.{{rest}}")
            for x in "qkv"
        ),
        Rule("blocks.{n}.mlp.fc1.{rest}", "blocks.{n}.mlp.0.{rest}"),
        Rule("blocks.{n}.mlp.fc2.{rest}", "blocks.{n}.mlp.3.{rest}"),
        Rule("blocks.{n}.proj.{rest}", "blocks.{n}.project.{rest}"),
        Rule("head.projection.{rest}", "head.1.{rest}"),
        *same("blocks.{n}.{rest}", "norm.{rest}"),
    ]


def pytorchvideo(config: MViTConfig | None) -> list[Rule]:
    """pytorchvideo has the authors' blocks between modules of its own; pools are 3D in image networks too."""
    return [
        Rule("patch_embed.proj.{rest}", "patch_embed.patch_model.{rest}"),
        Rule("norm_stem.{rest}", "norm_patch_embed.{rest}"),
        *(Rule(k, f"cls_positional_encoding.{k}") for k in ("cls_token", "pos_embed")),
        Rule("pos_embed_{rest}", "cls_positional_encoding.pos_embed_{rest}"),
        Rule("norm.{rest}", "norm_embed.{rest}"),
        Rule("head.projection.{rest}", "head.proj.{rest}"),
        *([] if config is None or config.ndim == 3 else _flat_pools("blocks.{n}")),
        *same("blocks.{n}.{rest}"),
    ]


def _openmmlab(head: str) -> list[Rule]:
    return [
        Rule("patch_embed.proj.{rest}", "backbone.patch_embed.projection.{rest}"),
        # The norm is numbered by the last output stage.
        Rule("norm.{rest}", "backbone.norm3.{rest}"),
        Rule("head.projection.{rest}", f"{head}.{{rest}}"),
        *(Rule(key, f"backbone.{key}") for key in ("cls_token", "pos_embed", "blocks.{n}.{rest}")),
    ]


def mmaction2(_: MViTConfig | None) -> list[Rule]:
    """mmaction2, and mmselfsup's backbones: the authors' blocks below `backbone`."""
    return _openmmlab("cls_head.fc_cls")


def mmpretrain(_: MViTConfig | None) -> list[Rule]:
    """mmpretrain: as mmaction2, with a head of another name."""
    return _openmmlab("head.fc")


def openmmlab_strays(config: MViTConfig) -> tuple[str, ...]:
    """Networks there always hold a token, used or not; norms of earlier output stages lead to no head."""
    token = () if config.cls_token else (r"backbone\.cls_token",)
    return (*token, r"backbone\.norm[0-2]\..+", r"data_preprocessor\..+")


_WORDS = {"q": "query", "k": "key", "v": "value"}
_DRAFT_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv": "attention.attention.qkv",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "proj": "shortcut_project_feature_dim",
    **{f"attn.{x}": f"attention.attention.{word}_projection" for x, word in _WORDS.items()},
    **{f"attn.pool_{x}": f"attention.attention.pool_{word}" for x, word in _WORDS.items()},
    **{f"attn.norm_{x}": f"attention.attention.norm_{word}" for x, word in _WORDS.items()},
}


def huggingface(_: MViTConfig | None) -> list[Rule]:
    """The draft of 2025 for transformers; its bare model has the same keys without `mvitv2.`."""
    rules = [Rule("head.projection.{rest}", "classifier.{rest}")]
    for model in ("mvitv2.", ""):
        block = f"{model}encoder.stages.{{s}}.blocks.{{b}}"
        tables = (("h", "height"), ("w", "width"))
        rules += [
            Rule("patch_embed.proj.{rest}", f"{model}embeddings.patch_embeddings.proj.{{rest}}"),
            Rule("cls_token", f"{model}embeddings.cls_token"),
            Rule("pos_embed", f"{model}embeddings.absolute_positional_embeddings"),
            Rule("norm.{rest}", f"{model}encoder.layer_norm.{{rest}}"),
            *(Rule(f"blocks.{{n}}.{o}.{{rest}}", f"{block}.{t}.{{rest}}") for o, t in _DRAFT_BLOCK.items()),
            *(
                Rule(
                    f"blocks.{{n}}.attn.rel_pos_{a}",
                    f"{block}.attention.attention.relative_positional_embeddings_{axis}",
                )
                for a, axis in tables
            ),
        ]
    return rules
