"""One run as data: every option of `openmvit train`, its default, unit and meaning. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run. `args.yaml` in a run folder is this record and repeats the run."""

    # -- what is trained, on what ------------------------------------------------------------------------------
    task: Literal["auto", "image", "video", "detection"] = "auto"
    """Job to train; `auto` reads it off the data."""
    derive: tuple[str, ...] = ()
    """Options that are worked out from the data, the batch and the network, unless you give them; the first lines say
    what came out, and args.yaml holds the values. `openmvit.training.presets` has the rules."""
    model: str | None = None
    """Architecture name (`openmvit models` lists them); default: the smallest of the task."""
    weights: str = "default"
    """Weights to start from: `default` (the model's published file), `none` (random), tag, `model.tag`, file or run."""
    inflation: Literal["centre", "copy"] = "centre"
    """How image weights start a clip network: in the middle frame (the paper) or in every frame (the public code)."""
    data: str | None = None
    """Folder of class folders, CSV file `path,label[;label...]`, list of videos, or a folder in COCO or YOLO layout."""
    val_fraction: float = 0.1
    """Share of the samples of each class held out when the data has no validation split."""
    resume: str | None = None
    """Run folder to continue exactly where it stopped; every other option comes from the run."""
    out_dir: str = "runs"
    """Folder that holds the run folders."""
    name: str | None = None
    """Name of the run folder; default: exp, exp2, ..."""

    # -- input -------------------------------------------------------------------------------------------------
    imgsz: int | None = None
    """Side of the square training and test image in pixels; default: the model's. Detection: the `lsj` square."""
    mean: tuple[float, float, float] | None = None
    """Channel means, RGB in 0..1; default: the starting weights', else ImageNet's for images and 0.45 for clips."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations, RGB in 0..1; default: likewise, 0.225 for clips."""
    crop_ratio: float = 0.875
    """Test: short side = int(imgsz / crop_ratio), then centre crop. 0 squashes the whole image to imgsz x imgsz."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Resampling filter of training crops and test resize; clips are bilinear without antialias, as published."""

    # -- clips -------------------------------------------------------------------------------------------------
    frames: int | None = None
    """Frames of a clip; default: the model's."""
    stride: int | None = None
    """Frames of a 30 fps video from one frame of a clip to the next; default: the weights', else the model's."""
    sampling: Literal["span", "segments"] = "span"
    """`span`: a stretch of frames x stride (Kinetics); `segments`: a frame of each of equal parts (SSv2)."""
    still: bool = False
    """Repeat one frame of each clip: the control whose score is what single frames give away."""
    clips: int | None = None
    """Clips per video of the card's test protocol, which `val` follows; default: 5, with segments 1."""
    crops: int | None = None
    """Crops per clip of that protocol, 1 (centre) or 3 along the longer side; default: 1, with segments 3."""
    short_side: int = 0
    """Test: short side; 0 is as published: imgsz / 0.875 for one crop of clips, imgsz for three, 800 for detectors."""
    stored_side: int = 256
    """Larger videos are shrunk to this short side first, as the published runs stored theirs; 0 leaves them."""
    reader: Literal["auto", "pyav", "torchcodec"] = "auto"
    """What decodes videos; `auto` is torchcodec where it works and PyAV elsewhere."""

    # -- detection ---------------------------------------------------------------------------------------------
    pipeline: Literal["multiscale", "lsj", "none"] = "multiscale"
    """Training images: short side drawn, perhaps after a crop; large-scale jitter on a square; or the test resize."""
    sides: tuple[int, int] = (480, 800)
    """`multiscale`: smallest and largest short side in pixels, of which one is drawn in steps of 32."""
    long_side: int = 1333
    """Longest side of training (not `lsj`) and test images; the short side gives way."""
    crop_prob: float = 0.5
    """`multiscale`: share of the images that are resized to one of `crop_sides` and cropped before."""
    crop_sides: tuple[int, int, int] = (400, 500, 600)
    """`multiscale`: short sides before that crop."""
    crop_range: tuple[int, int] = (384, 600)
    """`multiscale`: range of the height and of the width of that crop."""
    scales: tuple[float, float] = (0.1, 2.0)
    """`lsj`: range of the scale; 1 is the image that just fits into the square of `imgsz`, default 1024."""
    grey_pad: bool = False
    """`lsj`: fill the square with grey that counts as image."""
    aspect_groups: bool = True
    """Batches of wide or of tall images only, which need less padding."""

    # -- augmentation ------------------------------------------------------------------------------------------
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area range of the random resized crop, as a share of the image."""
    crop_aspect: tuple[float, float] = (0.75, 1.3333333333333333)
    """Aspect range (width / height) of the random resized crop."""
    jitter: tuple[int, int] | None = None
    """Clips: short side drawn from this range and a random square crop, in place of the random resized crop."""
    jitter_inverse: bool = True
    """Draw that side as 1 / U(1 / largest, 1 / smallest); false draws it uniformly."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    auto_augment: str | None = "rand-m9-n6-mstd0.5-inc1"
    """RandAugment string, or null for none."""
    erase: float = 0.25
    """Probability of random erasing with per-pixel noise."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    mixup: float = 0.8
    """Alpha of MixUp; 0 switches it off."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 switches it off."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed."""
    mix_switch: float = 0.5
    """Probability of CutMix instead of MixUp when both are on."""
    repeats: int = 1
    """Augmented copies of every sample within a batch; copies of a video share the decoded clip."""

    # -- schedule ----------------------------------------------------------------------------------------------
    epochs: int = 100
    """Passes over the training data, or with `passes` as many times as many."""
    passes: float = 0.0
    """Passes that count as one epoch: they follow each other without a gap, every batch is full and no sample is left
    out. 0 is as published: one pass, whose last, smaller batch is left out."""
    batch: int | Literal["auto"] = 64
    """Samples per step and process; `auto` takes the largest that fits in memory."""
    accumulate: int = 1
    """Steps whose gradients are added before one update."""
    lr: float = 2.5e-4
    """Peak learning rate for `lr_batch` samples per update; scaled linearly to the actual number, and printed."""
    lr_batch: int = 256
    """Number of samples per update that `lr`, `warmup_lr` and `min_lr` are stated for; 0 takes them as they are."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up from `warmup_lr` to `lr`."""
    warmup_lr: float = 1.0e-8
    """Learning rate of the first step."""
    min_lr: float = 1.0e-6
    """Learning rate at the end of the cosine."""
    updates: int = 0
    """Length of the run in optimiser updates, in place of `epochs`; 0 counts epochs."""
    warmup_updates: int = 0
    """With `updates`: updates of linear warm-up, in place of `warmup_epochs`."""
    decay_at: tuple[int, int] | None = None
    """With `updates`: after so many the learning rate falls to a tenth, twice, in place of the cosine."""
    layer_decay: float = 1.0
    """Factor on the learning rate per layer below the head; 1 is off."""

    # -- optimiser ---------------------------------------------------------------------------------------------
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging factors."""
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 0.05
    """Decay of the parameters that `decay` names."""
    decay: Literal["matrices", "not_norms", "vitdet"] = "matrices"
    """`matrices`: not those with one axis; `not_norms`: not norms and position tables; `vitdet`: as that family."""
    clip_grad: float = 1.0
    """Largest global L2 norm of the gradients; 0 is off."""

    # -- network -----------------------------------------------------------------------------------------------
    drop_path: float | None = None
    """Stochastic depth of the last block (linear from 0); default: the model's."""
    dropout: float | None = None
    """Dropout before the classifier; default: the model's."""
    freeze: str | None = None
    """`backbone` (all but the classifier) or a number N: stem and first N blocks. Frozen parts stay in eval mode."""
    tune: Literal["all", "head"] = "all"
    """`head` trains the classifier alone."""
    grad_ckpt: bool = False
    """Recompute block activations in the backward pass: less memory, about a third more time. Otherwise only those of
    blocks that read 2^16 tokens or more, as the first ones of a detector."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights; 0 is off. When on, `best` holds the average."""

    # -- engine ------------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:N."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision. On a CPU that is slower in bf16 than in float32 bf16 changes nothing."""
    workers: int = 2
    """Processes that load data; 0 loads in the main process."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the work; `auto` is DDP when there are several."""
    seed: int = 0
    """Seed of everything random: weights, order, augmentation, dropout."""
    patience: int = 0
    """Epochs without improvement of the watched metric before the run stops; 0 never stops early."""
    val_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    save_every: int = 0
    """Updates between writes of `weights/last`; 0 writes once per epoch."""
    max_bad: float = 0.1
    """Share of unreadable files at which training stops."""
    plots: bool = True
    """Write results.png and the task's plots."""
