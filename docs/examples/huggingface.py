"""transformers on a local folder, without network: a short Trainer run, then the three pipelines.

HF_HUB_OFFLINE=1 python docs/examples/huggingface.py
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoModelForVideoClassification, AutoVideoProcessor, Trainer, TrainingArguments, pipeline

import openmvit
import openmvit.hub as hub
from openmvit.data.generated import write_digits
from openmvit.data.generated_clips import MOTIONS, write_moving_digits

DIGITS = [str(digit) for digit in range(10)]


class Pictures(Dataset[dict[str, torch.Tensor]]):
    """PNG files in class folders, prepared by the processor."""

    def __init__(self, root: Path, processor: hub.MViTV2ImageProcessor) -> None:
        self.files = sorted(root.glob("*/*.png"))
        self.processor = processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels = self.processor(Image.open(self.files[index]), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": torch.tensor(DIGITS.index(self.files[index].parent.name))}


def train(work: Path) -> Path:
    """Train a small network on scans of digits with transformers' own Trainer; the folder it is saved in."""
    torch.manual_seed(0)
    data, folder = write_digits(work / "digits", size=32), work / "digits_model"
    processor = hub.MViTV2ImageProcessor(crop_size=32, crop_pct=1.0)
    labels = {"id2label": dict(enumerate(DIGITS)), "label2id": {name: i for i, name in enumerate(DIGITS)}}
    network = openmvit.create_model("mvitv2_micro", num_classes=10).config
    model = hub.MViTV2ForImageClassification(hub.MViTV2Config.from_network(network, **labels))
    arguments = TrainingArguments(
        output_dir=str(work / "trainer"),
        max_steps=60,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        warmup_steps=10,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=Pictures(data / "train", processor)).train()
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def images(folder: Path, unseen: Path) -> tuple[int, int, int]:
    """Right answers and answers of the image pipeline, and the length of a feature vector of the other one."""
    files = [str(file) for file in sorted(unseen.glob("*.png"))]
    answers = pipeline("image-classification", model=str(folder))(files, top_k=1)
    right = sum(answer[0]["label"] == Path(file).name[0] for answer, file in zip(answers, files, strict=True))
    features = pipeline("image-feature-extraction", model=str(folder))(files[0], pool=True, return_tensors=True)
    return right, len(files), features.shape[-1]


def clips(work: Path) -> tuple[str, bool]:
    """Best class of a clip by the video pipeline, and whether it computed what the network itself computes."""
    torch.manual_seed(1)
    data = write_moving_digits(work / "clips", train=8, val=8, size=32, frames=16)
    network, folder = openmvit.create_model("mvitv2_micro_8x2", num_classes=len(MOTIONS)).eval(), work / "clip_model"
    card = {"model": "mvitv2_micro_8x2", "classes": list(MOTIONS)}
    hub.MViTV2VideoProcessor(num_frames=8, frame_stride=2, crop_size=32).save_pretrained(folder)
    hub.wrap(network, card).save_pretrained(folder)
    file = str(next((data / "val").rglob("*.mp4")))
    best = pipeline("video-classification", model=str(folder))(file, top_k=1)[0]["label"]
    pixels = AutoVideoProcessor.from_pretrained(folder)(file, return_tensors="pt")
    with torch.inference_mode():
        logits = AutoModelForVideoClassification.from_pretrained(folder)(**pixels).logits
        own = network(pixels["pixel_values_videos"].movedim(1, 2))
    return best, torch.equal(logits, own)


def main() -> None:
    """All of it, in a folder that is removed again."""
    torch.set_num_threads(1)  # the pictures are small: more threads would wait for each other
    with TemporaryDirectory() as name:
        work = Path(name)
        folder = train(work)
        right, count, width = images(folder, work / "digits" / "unseen")
        best, same = clips(work)
        file = hub.to_checkpoint(folder, work / "digits.safetensors")
        answers = openmvit.load(file).predict(work / "digits" / "unseen")
        print(f"openmvit predict reads the trained folder as one file: {len(answers)} answers")
        print(f"{right} of {count} unseen digits right, {width} features, clip {best!r}, same logits: {same}")


if __name__ == "__main__":
    main()
