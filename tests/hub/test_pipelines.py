"""transformers' own machinery on a local folder, in a process that may not use the network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import openmvit
from openmvit.data.generated_clips import write_moving_digits

ROOT = Path(openmvit.__file__).parents[2]

SCRIPT = """
import json, sys
import torch
import openmvit.hub as hub
from PIL import Image
from transformers import Trainer, TrainingArguments, pipeline
images, clips, picture, video, out = sys.argv[1:]
found = {}
found["picture"] = pipeline("image-classification", model=images)(picture, top_k=3)
found["features"] = pipeline("image-feature-extraction", model=images)(picture, pool=True)
found["video"] = pipeline("video-classification", model=clips)(video, top_k=2)
model = hub.MViTV2ForImageClassification.from_pretrained(images)
with torch.no_grad():
    pixels = hub.MViTV2ImageProcessor.from_pretrained(images)(Image.open(picture))
    logits = model(**pixels).logits
found["expected"] = dict(zip(model.config.id2label.values(), logits.softmax(-1)[0].tolist()))
data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
arguments = TrainingArguments(output_dir=out, max_steps=3, per_device_train_batch_size=4, report_to=[], use_cpu=True,
                              save_steps=3, gradient_checkpointing=True, eval_strategy="steps", eval_steps=3)
trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
trainer.train()
found["losses"] = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
again = hub.MViTV2ForImageClassification.from_pretrained(out + "/checkpoint-3")
found["same"] = all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(image_folder, clip_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("pipelines")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)).save(work / "picture.png")
    clips = write_moving_digits(work / "clips", train=8, val=8, size=40, frames=16)
    video = next((clips / "val").rglob("*.mp4"))
    given = [image_folder, clip_folder, work / "picture.png", video, work / "trainer"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, given)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("FOUND")[1])


def test_image_classification(found):
    assert {row["label"] for row in found["picture"]} == {"ant", "bee", "cat"}
    for row in found["picture"]:
        assert row["score"] == pytest.approx(found["expected"][row["label"]], abs=1e-6)


def test_image_feature_extraction(found):
    assert len(found["features"][0]) == 32


def test_video_classification(found):
    assert {row["label"] for row in found["video"]} == {"left", "right"}
    assert sum(row["score"] for row in found["video"]) == pytest.approx(1, abs=1e-6)


def test_trainer_trains_scores_and_saves(found):
    assert len(found["losses"]) == 1
    assert found["same"]


def test_without_transformers_the_sentence_names_the_extra(tmp_path):
    code = "import sys; sys.modules['transformers'] = None\nimport openmvit.hub\nopenmvit.hub.MViTV2Model"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "openmvit.hub.MViTV2Model needs transformers: pip install 'openmvit[hub]'" in done.stderr


@pytest.mark.slow
def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / "huggingface.py")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1].endswith("same logits: True")
