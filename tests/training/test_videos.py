"""Training on clips: killed runs resume to the last bit, broken files are listed, every clip is scored once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.clipfiles import cut, garble, write_audio, write_video
from openmvit import checkpoint
from openmvit.cli import main
from openmvit.config import MViTConfig
from openmvit.data.generated_clips import write_moving_digits
from openmvit.data.samples import SampleTable
from openmvit.errors import UserError
from openmvit.training.inputs import ClipInput, infer_task
from openmvit.training.network import Start
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import load_recipe
from openmvit.training.start_task import open_task
from openmvit.validate import validate

TINY = MViTConfig(
    input_size=(4, 32, 32),
    depths=(1, 1),
    embed_dim=16,
    patch_kernel=(3, 7, 7),
    patch_stride=(2, 4, 4),
    patch_padding=(1, 3, 3),
    kernel_qkv=(3, 3, 3),
    stride_q=(1, 2, 2),
    adaptive_kv_stride=(1, 2, 2),
    cls_token=True,
    drop_path_rate=0.3,
    drop_rate=0.2,
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of eight motions three training and two validation clips of eight frames."""
    return write_moving_digits(tmp_path_factory.mktemp("videos"), train=24, val=17, size=48, frames=8)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny_clip_4x2.json"
    path.write_text(TINY.to_json())
    return path


@pytest.fixture
def options(videos: Path, tiny_clip: Path) -> dict[str, object]:
    """Everything random is on."""
    base = {"data": videos, "model": tiny_clip, "task": "video", "reader": "pyav", "repeats": 2, "stored_side": 0}
    return base | {"auto_augment": "rand-m7-n4-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "flip": 0.5, "epochs": 2}


@pytest.mark.slow
def test_killed_run_continues_exactly(start, options) -> None:
    options |= {"batch": 4, "workers": 2, "save_every": 1, "ema": 0.9}
    whole = start("whole", **options)
    assert whole.end() == 0, whole.text()
    steps = len(whole.losses())
    assert steps == 24
    killed = start("killed", **options)
    killed.wait_for(random.randrange(3, 18))
    killed.kill()
    resumed = start(resume=killed.folder)
    assert resumed.end() == 0, resumed.text()
    assert resumed.losses() == whole.losses()
    ours, theirs = checkpoint.read_model(resumed.folder), checkpoint.read_model(whole.folder)
    weights = ours[0].state_dict()
    assert all(torch.equal(weights[name], value) for name, value in theirs[0].state_dict().items())
    assert ours[1]["preprocessing"] == theirs[1]["preprocessing"]


@pytest.mark.slow
def test_two_ranks_train_a_class_token_and_score_every_clip_once(start, options, tmp_path: Path) -> None:
    """The last block's query filter and tables reach no loss: data-parallel training must know."""
    training = start("two", ranks=2, **options, batch=4, workers=0)
    assert training.end() == 0, training.text()
    assert training.text().count("New run from") == 1
    command = ["-m", "openmvit", "val", str(training.folder), "--workers", "0", "--device", "cpu"]
    command += ["--clips", "2", "--crops", "3"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    lines = []
    for launcher in ([], TORCHRUN):
        # 17 clips: the ranks do not have the same number.
        done = subprocess.run(
            [sys.executable, *launcher, *command], env=env, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        lines.append(done.stdout.splitlines()[-1])
    assert lines[0] == lines[1]
    assert lines[0].startswith("val top1=0.") and lines[0].endswith("clips=17 views=6") and "one_view_top1=" in lines[0]


def test_six_kinds_of_broken_file_among_clips_of_three_kinds(options, tmp_path: Path, capsys) -> None:
    """Sizes, frame rates and lengths differ, six files are broken: the run goes on and lists them with reasons."""
    data = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for number, (size, fps, frames) in enumerate([((96, 64), 30, 60), ((64, 80), 12, 20), ((50, 50), 60, 7)]):
            for i in range(count):
                write_video(data / split / "abc"[number] / f"{i}.mp4", frames, size=size, fps=fps)
    place = data / "train" / "b"
    (place / "zero.mp4").touch()
    (place / "text.mp4").write_text("no video at all")
    cut(write_video(place / "cut.mp4"), 0.5)
    cut(write_video(place / "cut.mkv", 120), 0.3)
    write_audio(place / "sound.mp4")
    garble(write_video(place / "garbled.mp4"), 0.0, 3000)
    words = {**options, "data": data, "weights": "none", "out_dir": tmp_path / "runs", "name": "bad", "workers": 0}
    words |= {"batch": 4, "device": "cpu", "plots": "false", "max_bad": 0.5, "warmup_epochs": 1, "stride": 30}
    assert main(["train", *(f"{key}={value}" for key, value in words.items())]) == 0
    run = tmp_path / "runs" / "video" / "bad"
    listed = dict(line.split("\t") for line in (run / "bad_files.txt").read_text().splitlines())
    names = ["cut.mkv", "cut.mp4", "garbled.mp4", "sound.mp4", "text.mp4", "zero.mp4"]
    assert sorted(listed) == [str(place / name) for name in names]
    assert all(listed.values()) and not any("second try" in reason for reason in listed.values()), listed
    assert "6 unreadable files are listed" in capsys.readouterr().out
    bad = data / "val" / "a" / "1.mp4"
    bad.write_bytes(b"")
    found = validate(run, workers=0, device="cpu")
    assert (found["samples"], found["unreadable"], found["views"]) == (5, [str(bad)], 5)


def test_card_says_how_clips_are_made(options, videos: Path, tiny_clip: Path) -> None:
    words = {**options, "data": str(videos), "model": str(tiny_clip), "weights": "none"}
    task = open_task(Recipe(**words))
    card = task.card({})
    wanted = {"imgsz": 32, "num_frames": 4, "stride": 2, "sampling": "span", "clips": 5, "crops": 1, "short_side": 36}
    assert card["task"] == "video" and wanted.items() <= card["preprocessing"].items()
    assert card["preprocessing"]["mean"] == (0.45, 0.45, 0.45)
    batch = next(iter(task.train_loader(4, pin=False)))
    assert batch["image"].shape == (4, 3, 4, 32, 32) and batch["index"].tolist()[::2] == batch["index"].tolist()[1::2]
    first, second = (next(iter(task.val_loader(4, pin=False)))["image"] for _ in range(2))
    assert torch.equal(first, second)
    segments = open_task(Recipe(**words, sampling="segments")).card({})["preprocessing"]
    assert (segments["sampling"], segments["clips"], segments["crops"], segments["short_side"]) == (
        "segments",
        1,
        3,
        32,
    )


def test_statistics_and_stride_come_from_the_starting_weights(tiny_clip: Path) -> None:
    known = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "stride": 7}
    model = open_model()
    source = ClipInput(Recipe(), TINY, Start(model, "some_4x2", "", known))
    assert (source.mean, source.std, source.sampling.stride) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 7)
    own = ClipInput(Recipe(mean=(0.5, 0.5, 0.5), stride=3), TINY, Start(model, "some_4x2", "", known))
    assert (own.mean, own.sampling.stride) == ((0.5, 0.5, 0.5), 3)
    assert ClipInput(Recipe(), TINY, Start(model, "some_4x2", "", {})).sampling.stride == 2


def open_model():
    from openmvit.model import MViT

    return MViT(TINY)


def test_still_clips_repeat_one_frame(options, videos: Path, tiny_clip: Path) -> None:
    words = {**options, "data": str(videos), "model": str(tiny_clip), "weights": "none", "erase": 0.0}
    moving, still = (open_task(Recipe(**words, still=flag)) for flag in (False, True))
    for name in ("train_loader", "val_loader"):
        clips = next(iter(getattr(still, name)(4, pin=False)))["image"]
        assert torch.equal(clips, clips[:, :, :1].expand_as(clips))
        clips = next(iter(getattr(moving, name)(4, pin=False)))["image"]
        assert not torch.equal(clips, clips[:, :, :1].expand_as(clips))
    assert isinstance(still.source, ClipInput)
    drawn = [still.source.sampling.train_indices(8, 30.0, torch.Generator().manual_seed(i))[0] for i in range(60)]
    assert set(drawn) == {0, 2, 4, 7}, "those of the moving clip"
    assert still.card({})["preprocessing"]["still"] is True


def test_task_is_read_off_the_data(videos: Path, digits: Path, tiny_clip: Path, tmp_path: Path) -> None:
    assert infer_task(Recipe(data=str(videos))) == "video"
    assert infer_task(Recipe(data=str(digits))) == "image"
    assert infer_task(Recipe(data=str(digits), model="mvitv2_small_16x4")) == "video"
    assert infer_task(Recipe(data=str(videos), task="image")) == "image"
    (tmp_path / "list.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    assert infer_task(Recipe(data=str(tmp_path / "list.csv"))) == "video"
    scan = next((digits / "train").rglob("*.png")).read_bytes()
    for name in ("frames", "pictures"):
        for number in range(1, 11):
            stem = f"{number:05d}" if name == "frames" else f"{number * number}_x"
            path = tmp_path / name / "train" / "ant" / "one" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(scan)
    assert infer_task(Recipe(data=str(tmp_path / "frames"))) == "video"
    assert infer_task(Recipe(data=str(tmp_path / "pictures"))) == "image"


def test_videos_without_a_recipe_start_from_the_preset(videos: Path, tiny_clip: Path, tmp_path: Path, capsys) -> None:
    words = [f"data={videos}", f"model={tiny_clip}", "weights=none", "epochs=1", "warmup_epochs=0", "workers=0"]
    assert main(["train", *words, "batch=8", "device=cpu", "plots=false", f"out_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith("Recipe video/small, since the data are videos")
    used, preset = load_recipe(tmp_path / "video" / "exp" / "args.yaml"), load_recipe("video/small")
    assert (used.auto_augment, used.crop_scale, used.dropout) == (preset.auto_augment, preset.crop_scale, 0.0)
    assert (used.epochs, used.batch, used.passes, used.derive) == (1, 8, 1.0, ())


def test_model_and_data_must_be_of_one_kind(videos: Path) -> None:
    with pytest.raises(UserError, match=r"mvitv2_micro takes images and .* holds videos. Choose a model for videos"):
        open_task(Recipe(data=str(videos), model="mvitv2_micro", weights="none"))


def test_image_weights_start_a_clip_network(videos: Path, tmp_path: Path) -> None:
    from openmvit.zoo import create_model

    image = create_model("mvitv2_micro", num_classes=3)
    card = {"architecture": image.config.to_dict(), "model": "mvitv2_micro", "preprocessing": {"mean": [0.3] * 3}}
    checkpoint.save(tmp_path / "image.safetensors", image.state_dict(), card)
    recipe = Recipe(data=str(videos), model="mvitv2_micro_8x2", weights=str(tmp_path / "image.safetensors"))
    for rule in ("centre", "copy"):
        task = open_task(Recipe(**{**vars(recipe), "inflation": rule}))
        stem = task.model.patch_embed.proj.weight.detach()
        assert torch.equal(stem[:, :, 1], image.patch_embed.proj.weight.detach())
        assert bool(stem[:, :, 0].any()) == (rule == "copy")
        assert task.source.preprocessing()["mean"] == (0.3, 0.3, 0.3)


def test_times_of_a_list_survive_joining_the_splits(videos: Path, tmp_path: Path) -> None:
    from openmvit.data.videos import open_videos
    from openmvit.validate.heldout import split_of

    clip = next((videos / "train").rglob("*.mp4"))
    rows = [f"{clip},a,0,0.25,train", f"{clip},b,0.1,0.25,train", f"{clip},b,0.15,0.2,val"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,start,end,split", *rows]) + "\n")
    whole = split_of(open_videos(tmp_path / "list.csv"), "all")
    assert isinstance(whole, SampleTable)
    assert [whole.span(i) for i in range(3)] == [(0.0, 0.25), (0.1, 0.25), (0.15, 0.2)]
    assert [whole.labels(i) for i in range(3)] == [(0,), (1,), (1,)]
