"""The network: stem, positions, blocks, norm, head. One class for images and clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openmvit.config import MViTConfig, Size
from openmvit.errors import UserError
from openmvit.nn import ops
from openmvit.nn.block import MultiscaleBlock
from openmvit.nn.grid import Tokens, conv
from openmvit.nn.position import sincos_table


class PatchEmbed(nn.Module):
    """Overlapping convolution that turns pixels into tokens."""

    def __init__(self, config: MViTConfig) -> None:
        super().__init__()
        layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[config.ndim]
        self.proj = layer(
            config.in_chans, config.embed_dim, config.patch_kernel, config.patch_stride, config.patch_padding
        )
        self.stride, self.padding = config.patch_stride, config.patch_padding

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *size] -> [B, *grid, embed_dim]`."""
        return conv(x.movedim(1, -1).contiguous(), self.proj.weight, self.proj.bias, self.stride, self.padding)


class ClassifierHead(nn.Module):
    """Dropout, then one linear layer. Gives logits, in training and in evaluation."""

    def __init__(self, dim: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop_rate)
        self.projection = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C] -> [B, num_classes]`; without classes the features themselves."""
        return self.projection(self.dropout(x))


class MViT(nn.Module):
    """MViTv2 and MViTv1 on any number of axes.

    Any input size, aspect ratio and number of frames runs with any weights: position tables are resized to the grid.
    Where the head reads the class token, the grid rows of the last block lead nowhere: what only they use (its query
    filter and relative tables) gets no gradient: `unused_parameters` names it.

    Raises:
        UserError: from `forward`, if the input has another number of axes or channels than the configuration.
    Source: MViTv2 (Li et al., 2022), MViT (Fan et al., 2021); semantics of the released weights.
    """

    def __init__(self, config: MViTConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        self.recompute_streams = True
        self.patch_embed = PatchEmbed(config)
        self.in_chans = config.in_chans
        # A side gives at least one token, and a picture's is at least a patch.
        sides = zip(config.patch_kernel, config.patch_padding, config.patch_stride, strict=True)
        least = [(k - 2 * p, s) for k, p, s in sides]
        self.smallest_input = [max(1, n, s if axis >= config.ndim - 2 else 1) for axis, (n, s) in enumerate(least)]
        self.input_shape = f"[B, {config.in_chans}, {('L', 'H, W', 'T, H, W')[config.ndim - 1]}]"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if config.cls_token else None
        self._add_absolute_position()
        self.norm_stem = nn.LayerNorm(config.embed_dim, eps=config.norm_eps) if config.norm_stem else None
        self.blocks = build_blocks(config)
        self.ends_stage = [i == n - 1 for n in config.depths for i in range(n)]
        self.patch_grid, self.absolute = config.patch_grid, config.absolute_position
        self.reads_token = config.head_reads == "token"
        self.norm: nn.Module = nn.LayerNorm(config.num_features, eps=config.norm_eps)
        self.head: nn.Module = ClassifierHead(config.num_features, config.num_classes, config.drop_rate)
        self.reset_parameters()

    def _add_absolute_position(self) -> None:
        c, dim = self.config, self.config.embed_dim
        tokens = torch.Size(c.patch_grid).numel()
        if c.absolute_position == "separable":
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, c.patch_grid[0], dim))
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, tokens // c.patch_grid[0], dim))
            if c.cls_token:
                self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim))
        elif c.absolute_position == "joint":
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens + c.cls_token, dim))
        elif c.absolute_position == "sincos":
            table = sincos_table(c.patch_grid, dim).flatten(1, -2)
            self.register_buffer("pos_embed", torch.cat([table.new_zeros(1, int(c.cls_token), dim), table], dim=1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start all weights anew by the published rule that `config.init` names."""
        self._reset_linear(self)
        for name, parameter in self.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf == "cls_token" or leaf.startswith(("pos_embed", "rel_pos")):
                zero = leaf.startswith("rel_pos") and self.config.rel_pos_zero_init
                nn.init.zeros_(parameter) if zero else nn.init.trunc_normal_(parameter, std=0.02)
            elif self.config.init == "slowfast" and leaf == "weight" and parameter.dim() > 2:
                nn.init.trunc_normal_(parameter, std=0.02)
        self._scale_head(self.head)

    def _reset_linear(self, part: nn.Module) -> None:
        """Linear layers and the biases of norms, by the published rule."""
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02 if self.config.init == "slowfast" else 0.0)

    @torch.no_grad()
    def _scale_head(self, head: nn.Module) -> None:
        for parameter in head.parameters():
            parameter.mul_(self.config.head_init_scale)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier with another number of classes in place; 0 leaves the features."""
        old = next(self.parameters())
        self.config = self.config.replace(num_classes=num_classes)
        head = ClassifierHead(self.config.num_features, num_classes, self.config.drop_rate)
        self._reset_linear(head)
        self._scale_head(head)
        self.head = head.to(old.device, old.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool | None = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them; false keeps all.

        None is what a new network does: only of blocks that read a map of at least `nn.recompute.LARGE_MAP` tokens, as
        the first ones of a detector.

        Reversible networks do so by themselves, without keeping the inputs of blocks either, while `recompute_streams`
        is true; false is faster.
        """
        self.grad_checkpointing = bool(enable)
        for module in self.modules():
            if isinstance(module, MultiscaleBlock):
                module.recompute_large = enable is None

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Parameters of the head, which a fine-tune on other classes starts anew."""
        return list(self.head.parameters())

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 stem and positions, i + 1 block i, depth + 1 norm and head."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.config.depth + 1 if name.startswith(("norm.", "head.")) else 0

    def unused_parameters(self) -> set[str]:
        """Names of the parameters that the logits do not depend on, which data-parallel training has to know."""
        if self.config.head_reads != "token":
            return set()
        last = f"blocks.{self.config.depth - 1}.attn."
        return {name for name, _ in self.named_parameters() if name.startswith((f"{last}rel_pos_", f"{last}pool_q."))}

    def check_input(self, x: Tensor) -> None:
        """Raise a UserError that prints the shape wanted."""
        if not isinstance(x, Tensor):
            raise UserError(f"The model got a {type(x).__name__}", f"Give one tensor {self.input_shape}")
        if x.dim() != len(self.smallest_input) + 2 or x.shape[1] != self.in_chans:
            raise UserError(f"The model got an input of shape {list(x.shape)}", f"Give {self.input_shape}")
        if any(n < least for n, least in zip(x.shape[2:], self.smallest_input, strict=True)):
            smallest = " x ".join(map(str, self.patch_embed.stride[-2:]))
            raise UserError(f"The input {list(x.shape)} is smaller than one patch", f"Give at least {smallest} pixels")

    def embed(self, x: Tensor) -> Tokens:
        """Stem, class token, absolute position: `[B, C, *size]` -> `[B, *grid, embed_dim]` and `[B, 1, embed_dim]`."""
        x = self.patch_embed(x)  # [B, *grid, embed_dim]
        cls = None if self.cls_token is None else self.cls_token.expand(x.shape[0], -1, -1)  # [B, 1, embed_dim]
        if self.absolute != "none":
            position, cls_position = self.absolute_position(tuple(x.shape[1:-1]))
            x = x + position
            cls = cls if cls is None or cls_position is None else cls + cls_position
        return (x, cls) if self.norm_stem is None else ops.layer_norm(self.norm_stem, x, cls)

    def absolute_position(self, grid: Size) -> Tokens:
        """Absolute position `[1, *grid, embed_dim]`, resized from its nominal grid, and that of the class token."""
        has_cls = self.cls_token is not None
        if self.absolute == "separable":
            time = ops.resize_grid(self.pos_embed_temporal, grid[:1])
            space = ops.resize_grid(self.pos_embed_spatial.unflatten(1, self.patch_grid[1:]), grid[1:])
            position = time.view(1, grid[0], *(1,) * len(grid[1:]), -1) + space[:, None]
            return position, self.pos_embed_class if has_cls else None
        position = ops.resize_grid(self.pos_embed[:, int(has_cls) :].unflatten(1, self.patch_grid), grid)
        return position, self.pos_embed[:, :1] if has_cls else None

    def stages(self, x: Tensor) -> list[Tokens]:
        """Tokens after each stage, `[B, *grid, C]` with the class token beside them, without final norm."""
        self.check_input(x)
        x = ops.cast_input(x, self.patch_embed.proj.weight)
        with ops.autocast(self.patch_embed.proj.weight):
            return ops.trunk(self, *self.embed(x))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """One map `[B, C, *grid]` per stage, finest first, without final norm and class token."""
        return [tokens.movedim(-1, 1) for tokens, _ in self.stages(x)]

    def forward_head(self, x: Tensor, cls: Tensor | None) -> Tensor:
        """Final norm, pooling and classifier: `[B, *grid, C]` -> `[B, num_classes]`."""
        with ops.autocast(self.patch_embed.proj.weight):
            if self.config.norm_after_pool:
                return self.head(self.norm(x.flatten(1, -2).mean(1)))
            if self.reads_token and cls is not None:
                return self.head(self.norm(cls).squeeze(1))
            return self.head(self.norm(x).flatten(1, -2).mean(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, never probabilities: `[B, C, *size]` -> `[B, num_classes]`."""
        return self.forward_head(*self.stages(x)[-1])


def build_blocks(config: MViTConfig) -> nn.ModuleList:
    """A block per record of the configuration."""
    if config.reversible == "none":
        return nn.ModuleList(map(MultiscaleBlock, config.blocks()))
    from openmvit.nn.reversible import TwoStreams, two_stream_block

    return TwoStreams(map(two_stream_block, config.blocks()))


class FeatureMaps(nn.Module):
    """The stages of an MViT as a backbone: `[B, C, *size]` -> one map `[B, C, *grid]` per chosen stage.

    Args:
        out_indices: stages to give, counted from 0; negative ones from the last.
        stage_norms: a LayerNorm on every map that is given, as in the released detectors; the network itself goes on
            with the map before it.
    """

    def __init__(self, model: MViT, out_indices: Sequence[int] | None = None, *, stage_norms: bool = False) -> None:
        super().__init__()
        stages = len(model.config.depths)
        self.out_indices = [i % stages for i in (range(stages) if out_indices is None else out_indices)]
        self.channels = [model.config.stage_dims[i] for i in self.out_indices]
        self.strides = [
            tuple(p * q**i for p, q in zip(model.config.patch_stride, model.config.stride_q, strict=True))
            for i in self.out_indices
        ]
        self.model = model
        eps = model.config.norm_eps
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=eps) if stage_norms else nn.Identity() for c in self.channels)
        # The backbone never reads them, and data-parallel training refuses parameters without gradient.
        model.norm, model.head = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        stages = self.model.stages(x)
        chosen = zip(self.norms, self.out_indices, strict=True)
        return [norm(stages[i][0]).movedim(-1, 1) for norm, i in chosen]
