"""Other ways to the same goal, on the same network, starting weights, batch and number of updates.

Each takes a folder with train/ and val/ and our run with the starting weights, and gives the best validation accuracy
of `EVALUATIONS` during the run. One thread.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EVALUATIONS = 30
SIDE = 32


def _open(data: Path) -> tuple[Any, Any, int]:
    """Training and validation tables, and the number of classes."""
    from openmvit.data.images import open_images

    found = open_images(data)
    return found.splits["train"], found.splits["val"], len(found.classes)


def _network(weights: Path, classes: int, seed: int) -> nn.Module:
    import openmvit

    torch.manual_seed(seed)
    model = openmvit.create_model(
        "mvitv2_micro", num_classes=classes, pretrained=str(weights / "weights" / "best.safetensors")
    )
    model.reset_classifier(classes)
    return model


def _pictures(table: Any) -> tuple[list[Any], Tensor]:
    from openmvit.data.images import read_image

    return [read_image(table.path(i)) for i in range(len(table))], torch.tensor(table.first_labels()).long()


def _test_pixels(table: Any) -> tuple[Tensor, Tensor]:
    from openmvit.data.transforms import TestTransform

    transform, (pictures, labels) = TestTransform(SIDE, 1.0), _pictures(table)
    return torch.stack([transform(picture) for picture in pictures]), labels


@torch.no_grad()
def _logits(model: nn.Module, pixels: Tensor) -> Tensor:
    model.eval()
    found = torch.cat([model(part) for part in pixels.split(128)])
    model.train()
    return found


def probe(data: Path, weights: Path, *, batch: int, updates: int, seed: int) -> float:
    """Logistic regression on the frozen features, standardised; the best of three strengths of its penalty."""
    from sklearn.linear_model import LogisticRegression

    train, val, classes = _open(data)
    model = _network(weights, classes, seed)
    model.reset_classifier(0)
    (x, y), (x_val, y_val) = ((_logits(model, pixels), labels) for pixels, labels in map(_test_pixels, (train, val)))
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = (((part - mean) / std).numpy() for part in (x, x_val))
    fits = (LogisticRegression(C=c, max_iter=2000).fit(x, y) for c in (0.01, 0.1, 1.0))
    return max(float(fit.score(x_val, y_val)) for fit in fits)


def timm_settings(data: Path, weights: Path, *, batch: int, updates: int, seed: int) -> float:
    """timm's parts with the settings that its author printed for fine-tuning at full size.

    Source: the command on the card of timm/vit_large_patch14_clip_336.datacompxl_ft_augreg_inat21 (AdamW, eps 1e-6,
    decay 0.01, rate 5e-5, clipping 1, layer decay 0.8) over the defaults of timm's train.py (crops of 0.08 to 1, flip,
    colour 0.4, smoothing 0.1, cosine, 5 epochs of warm-up, here at most a tenth of the run).
    """
    from timm.data import create_transform
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    train, val, classes = _open(data)
    model = _network(weights, classes, seed)
    transform = create_transform(
        (3, SIDE, SIDE), is_training=True, hflip=0.5, color_jitter=0.4, interpolation="bicubic"
    )
    optimizer = create_optimizer_v2(_Grouped(model), opt="adamw", lr=5e-5, weight_decay=0.01, eps=1e-6, layer_decay=0.8)
    warmup = min(5 * max(len(train) // batch, 1), updates // 10)
    schedule = CosineLRScheduler(
        optimizer, t_initial=updates, warmup_t=warmup, warmup_lr_init=0.0, warmup_prefix=True, t_in_epochs=False
    )
    (pictures, labels), (x_val, y_val) = _pictures(train), _test_pixels(val)
    generator, best, order = torch.Generator().manual_seed(seed), 0.0, []
    for update in range(updates):
        if len(order) < batch:
            order += torch.randperm(len(pictures), generator=generator).tolist()
        chosen, order = order[:batch], order[batch:]
        schedule.step_update(update)
        loss = F.cross_entropy(
            model(torch.stack([transform(pictures[i]) for i in chosen])), labels[chosen], label_smoothing=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (update + 1) % max(updates // EVALUATIONS, 1) == 0 or update + 1 == updates:
            best = max(best, float((_logits(model, x_val).argmax(1) == y_val).float().mean()))
    return best


class _Grouped(nn.Module):
    """Our network as timm groups layers for its layer decay."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^model\.patch_embed",
            "blocks": [(r"^model\.blocks\.(\d+)", None), (r"^model\.norm", (99999,))],
        }


def trainer(data: Path, weights: Path, *, batch: int, updates: int, seed: int) -> float:
    """transformers' `Trainer` as it comes: AdamW, rate 5e-5 falling linearly, no decay, no augmentation."""
    from transformers import Trainer, TrainingArguments

    import openmvit.hub as hub

    train, val, classes = _open(data)
    model = hub.wrap(
        _network(weights, classes, seed), {"model": "mvitv2_micro", "classes": [str(i) for i in range(classes)]}
    )
    sets = [
        [{"pixel_values": p, "labels": int(y)} for p, y in zip(pixels, labels, strict=True)]
        for pixels, labels in map(_test_pixels, (train, val))
    ]
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=updates,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=128,
            eval_strategy="steps",
            eval_steps=max(updates // EVALUATIONS, 1),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            seed=seed,
        )
        run = Trainer(
            model=model,
            args=arguments,
            train_dataset=sets[0],
            eval_dataset=sets[1],
            compute_metrics=lambda found: {"top1": float((found.predictions.argmax(-1) == found.label_ids).mean())},
        )
        run.train()
    return max(entry["eval_top1"] for entry in run.state.log_history if "eval_top1" in entry)


PEERS = {"timm": timm_settings, "transformers": trainer, "probe": probe}
