"""Two layouts of the same network: tokens as a channels-last grid with the class token beside, or flat tokens.

    python benchmarks/layout.py --out benchmarks/layout.md

The flat side is how the published implementations do it: tokens `[B, N, C]` with the class token in front, a fused
qkv of shape `[3, B, h, N, c]`, heads folded into the batch and channels moved to the front for every pool. Both sides
hold the same weights, call the same attention kernel and take turns in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.config import MViTConfig, Size
from openmvit.measuring import processor
from openmvit.model import MViT
from openmvit.nn.block import MultiscaleBlock
from openmvit.nn.relative import relative_rows

CPU = torch.device("cpu")
IMAGE = MViTConfig(drop_path_rate=0.0)
CLIP = MViTConfig(
    input_size=(16, 224, 224),
    num_classes=400,
    patch_kernel=(3, 7, 7),
    patch_stride=(2, 4, 4),
    patch_padding=(1, 3, 3),
    kernel_qkv=(3, 3, 3),
    stride_q=(1, 2, 2),
    adaptive_kv_stride=(1, 8, 8),
    cls_token=True,
    drop_path_rate=0.0,
)
NETWORKS = {
    "image S 224, no class token": (IMAGE, 4),
    "clip S 16x224x224, class token": (CLIP, 1),
}


def channels_first(x: Tensor, grid: Size) -> Tensor:
    """`[..., N, C] -> [-1, C, *grid]`, contiguous."""
    return x.reshape(-1, *grid, x.shape[-1]).movedim(-1, 1).contiguous()


class FlatBlock(nn.Module):
    """A block on `[B, N, C]` with the weights of ours; the class token, where there is one, is the first row."""

    def __init__(self, block: MultiscaleBlock, rows: int) -> None:
        super().__init__()
        self.block, self.rows = block, rows

    def pool(self, name: str, x: Tensor, grid: Size) -> tuple[Tensor, Size]:
        """`[B, h, N, c] -> [B, h, M, c]` and the grid of M."""
        pool, norm = getattr(self.block.attn, f"pool_{name}"), getattr(self.block.attn, f"norm_{name}")
        if pool is None:
            return x, grid
        conv = {2: F.conv2d, 3: F.conv3d}[len(grid)]
        cls, maps = x[:, :, : self.rows], channels_first(x[:, :, self.rows :], grid)
        padding = tuple(k // 2 for k in pool.kernel)
        maps = conv(maps, pool.weight, None, pool.stride, padding, groups=maps.shape[1])
        pooled = maps.reshape(*x.shape[:2], x.shape[-1], -1).transpose(2, 3)
        return norm(torch.cat([cls, pooled], dim=2) if self.rows else pooled), tuple(maps.shape[2:])

    def bias(self, q: Tensor, q_grid: Size, k_grid: Size) -> Tensor:
        """`[B, h, N, c]` -> position term `[B, h, N, M]`, zero in the class row and column."""
        axes, bias = "xyz"[: len(q_grid)], torch.zeros(())
        maps = q[:, :, self.rows :].reshape(*q.shape[:2], *q_grid, q.shape[-1])
        for i, (name, _, _) in enumerate(self.block.attn.tables):
            rows = relative_rows(getattr(self.block.attn, name), q_grid, k_grid, (i,))
            term = torch.einsum(f"bh{axes}c,{axes[i]}kc->bh{axes}k", maps, rows)
            term = term.view(*term.shape[:-1], *(n if a == i else 1 for a, n in enumerate(k_grid)))
            bias = bias + term
        return F.pad(bias.reshape(*q.shape[:2], prod(q_grid), prod(k_grid)), (self.rows, 0, self.rows, 0))

    def attention(self, x: Tensor, grid: Size) -> tuple[Tensor, Size]:
        """`[B, N, C] -> [B, M, C]` and the grid of M."""
        attn = self.block.attn
        q, k, v = attn.qkv(x).reshape(*x.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        (q, q_grid), (k, k_grid), (v, _) = (self.pool(name, t, grid) for name, t in (("q", q), ("k", k), ("v", v)))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(q, q_grid, k_grid))
        out = torch.cat([out[:, :, :1], out[:, :, 1:] + q[:, :, 1:]], dim=2) if self.rows else out + q
        return attn.proj(out.transpose(1, 2).reshape(x.shape[0], -1, attn.config.dim_attn)), q_grid

    def forward(self, x: Tensor, grid: Size) -> tuple[Tensor, Size]:
        """`[B, N, C] -> [B, M, C]` and the grid of M."""
        block = self.block
        normed = block.norm1(x)
        skip = block.proj(normed) if block.proj is not None else x
        branch, q_grid = self.attention(normed, grid)
        if kernel := block.config.skip_kernel:
            max_pool = {2: F.max_pool2d, 3: F.max_pool3d}[len(grid)]
            maps = channels_first(skip[:, self.rows :], grid)
            pooled = max_pool(maps, kernel, block.config.stride_q, [k // 2 for k in kernel]).flatten(2).transpose(1, 2)
            skip = torch.cat([skip[:, : self.rows], pooled], dim=1) if self.rows else pooled
        x = skip + branch
        return x + block.mlp(block.norm2(x))[0], q_grid


class FlatMViT(nn.Module):
    """The network on flat tokens, with the weights of ours."""

    def __init__(self, model: MViT) -> None:
        super().__init__()
        self.model, rows = model, int(model.config.cls_token)
        self.blocks = nn.ModuleList(FlatBlock(block, rows) for block in model.blocks)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *size] -> [B, num_classes]`."""
        maps = self.model.patch_embed.proj(x)
        x, grid = maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:])
        if self.model.cls_token is not None:
            x = torch.cat([self.model.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x, grid = block(x, grid)
        x = self.model.norm(x)
        return self.model.head(x[:, 0] if self.model.cls_token is not None else x.mean(1))


def networks(config: MViTConfig) -> tuple[MViT, FlatMViT]:
    """The two sides on one set of random weights."""
    torch.manual_seed(0)
    model = MViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model, FlatMViT(model)


def run(model: nn.Module, x: Tensor, precision: str, step: str) -> Tensor:
    """Forward, or forward with cross entropy and backward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.set_grad_enabled(step == "train"):
        out = model(x)
    if step == "train":
        F.cross_entropy(out, torch.arange(len(x))).backward()
        model.zero_grad(set_to_none=True)
    return out


def times_in_turn(sides: tuple[nn.Module, nn.Module], x: Tensor, precision: str, step: str, pairs: int) -> list[list]:
    """Processor seconds of each side in each pair; sides take turns at the start, and a first pair warms up."""
    times: list[list[float]] = [[], []]
    for pair in range(pairs + 1):
        for i in (0, 1) if pair % 2 else (1, 0):
            begin = time.process_time()
            run(sides[i], x, precision, step)
            times[i].append(time.process_time() - begin)
    return [side[1:] for side in times]


def rows(pairs: int) -> Iterator[str]:
    """One table row per network, precision and step."""
    for label, (config, batch) in NETWORKS.items():
        sides = networks(config)
        x = torch.randn(batch, 3, *config.input_size)
        out, flat = (run(side, x, "fp32", "forward") for side in sides)
        difference = float((out - flat).abs().max() / flat.abs().max())
        assert difference <= 1e-4, difference
        for precision, step in (("fp32", "forward"), ("fp32", "train"), ("bf16", "forward"), ("bf16", "train")):
            times = times_in_turn(sides, x, precision, step, pairs)
            ratios = [b / a for a, b in zip(*times, strict=True)]
            low, *_, high = quantiles(ratios, n=10, method="inclusive")
            grid_ms, flat_ms = (median(t) * 1e3 for t in times)
            yield (
                f"| {label} | {batch} | {precision} | {step} | {grid_ms:.0f} | {flat_ms:.0f} | "
                f"{median(ratios):.2f} | {low:.2f}-{high:.2f} | {difference:.0e} |"
            )


def main() -> None:
    """Print the table and write it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time counts the waiting of threads as work
    lines = [
        "# Layout of tokens: channels-last grid against flat",
        "",
        f"`python benchmarks/layout.py --pairs {options.pairs}` on {processor(CPU)}, torch {torch.__version__}. "
        "Machine shared with other work during the run, hence one thread and processor time: read the ratios.",
        "",
        "Grid: `[B, *grid, C]`, class token beside. Flat: `[B, N, C]`, class token in front, heads folded into the "
        "batch and permuted for every pool. Same weights, same attention kernel. Ratio: time of flat by time of grid, "
        "median of pairs; above 1 the grid is faster. Spread: 10th to 90th percentile. Difference: of fp32 outputs, "
        "as a share of the largest.",
        "",
        "| network | batch | precision | step | grid ms | flat ms | ratio | spread | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for row in rows(options.pairs):
        lines.append(row)
        print(row, flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
