"""Videos are scored by the protocol of the card, or by the one that the user names."""

from pathlib import Path

import pytest
import torch

from clipcolours import CLASSES, clip_model, write_clip
from openmvit import checkpoint
from openmvit.cli import main
from openmvit.data.video import open_video
from openmvit.data.video_transforms import clip_sampling_from, clip_test_transform_from
from openmvit.errors import UserError
from openmvit.validate import validate


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos whose colour changes on the way: which clips are looked at decides the score."""
    folder = tmp_path_factory.mktemp("videos")
    clip_model(folder / "model.safetensors")
    for split, count in (("train", 1), ("val", 4)):
        for number, name in enumerate(CLASSES):
            for i in range(count):
                parts = [(number, 20 + 10 * i), ((number + 1) % 3, 40), (number, 10 * i)]
                write_clip(folder / "data" / split / name / f"{i}.mp4", [(c, n) for c, n in parts if n])
    return folder


def by_hand(place: Path, clips: int, crops: int) -> tuple[float, float]:
    """Top-1 of the averaged views and of the middle one, from the network itself."""
    model, card = checkpoint.read_model(place / "model.safetensors")
    sampling = clip_sampling_from(card["preprocessing"])
    transform = clip_test_transform_from(card["preprocessing"], crops)
    right, single, files = 0, 0, sorted((place / "data" / "val").glob("*/*.mp4"))
    for path in files:
        with open_video(path) as video, torch.inference_mode():
            indices = [sampling.test_indices(video.num_frames, video.fps, k, clips) for k in range(clips)]
            views = [transform(video.frames(chosen), crop) for chosen in indices for crop in range(crops)]
            rows = model(torch.stack(views)).softmax(1)
        label = CLASSES.index(path.parent.name)
        right += int(rows.mean(0).argmax() == label)
        single += int(rows[clips // 2 * crops + crops // 2].argmax() == label)
    return right / len(files), single / len(files)


@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (5, 1), (3, 3)])
def test_views_are_averaged(place, clips, crops):
    found = validate(place / "model.safetensors", place / "data", clips=clips, crops=crops, workers=0, device="cpu")
    top1, single = by_hand(place, clips, crops)
    assert (found["top1"], found["one_view_top1"]) == pytest.approx((top1, single))
    assert (found["samples"], found["views"]) == (12, clips * crops)


def test_the_views_decide_the_score(place):
    assert by_hand(place, 1, 1)[0] != by_hand(place, 5, 1)[0]


def test_the_card_says_the_default(place, capsys):
    argv = ["val", str(place / "model.safetensors"), "--data", str(place / "data"), "--workers", "0", "--device", "cpu"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    own = checkpoint.read_model(place / "model.safetensors")[1]["preprocessing"]
    top1, single = by_hand(place, own["clips"], own["crops"])
    views = own["clips"] * own["crops"]
    assert lines[-1] == f"val top1={top1:.4f} top5=1.0000 one_view_top1={single:.4f} clips=12 views={views}"
    assert f"{own['clips']} clips x {own['crops']} crops of 4 frames (span, stride 4)" in lines[-2]


def test_options_of_the_other_kind_are_refused(place):
    with pytest.raises(UserError, match="--crop-ratio does not belong"):
        validate(place / "model.safetensors", place / "data", crop_ratio=0.5, device="cpu")
    with pytest.raises(UserError, match="crops is 2"):
        validate(place / "model.safetensors", place / "data", crops=2, device="cpu")
