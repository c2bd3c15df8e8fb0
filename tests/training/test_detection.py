"""Training of detectors: the run folder, exact resumption, several processes, adapted heads, what is frozen."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.boxfiles import broken_coco
from openmvit import checkpoint, zoo
from openmvit.cli import main
from openmvit.config import MViTConfig
from openmvit.data.generated_detection import write_digit_scenes
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detector import Detector
from openmvit.errors import UserError
from openmvit.training import job, memory, run
from openmvit.training.detection import augmentation, freeze, pictures_per_class
from openmvit.training.inputs import infer_task
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import load_recipe
from openmvit.training.start_task import open_task
from openmvit.validate import validate

SMALL = DetectorConfig(
    backbone=MViTConfig(
        input_size=(32, 32), depths=(1, 1), embed_dim=16, num_classes=0, adaptive_kv_stride=(2, 2), drop_path_rate=0.2
    ),
    num_classes=10,
    channels=16,
    anchor_sizes=(16.0, 32.0, 64.0),
    rpn_candidates=(50, 30),
    rpn_proposals=(30, 10),
    rpn_samples=32,
    roi_samples=16,
    stage_iou=(0.5, 0.6),
    coder_weights=((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0)),
    class_agnostic=True,
    head_norm="bn",
    box_convs=(16,),
    box_fcs=(32,),
    mask_convs=(16,),
    max_detections=5,
)
INPUT = {"sides": [48, 64], "short_side": 64, "long_side": 96, "crop_sides": [64, 72, 80], "crop_range": [48, 64]}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 training and 4 validation pictures of digits in COCO layout."""
    return write_digit_scenes(tmp_path_factory.mktemp("scenes"), train=14, val=4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture of a cascade of two stages with batch norms."""
    path = tmp_path_factory.mktemp("model") / "small.json"
    path.write_text(json.dumps(SMALL.to_dict()))
    return path


@pytest.fixture
def recipe(scenes: Path, small: Path, tmp_path: Path) -> Recipe:
    """Two epochs of seven steps."""
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in INPUT.items()}
    return Recipe(
        data=str(scenes),
        model=str(small),
        weights="none",
        out_dir=str(tmp_path / "runs"),
        epochs=2,
        batch=2,
        lr=1e-3,
        lr_batch=0,
        warmup_epochs=0.5,
        decay="not_norms",
        device="cpu",
        workers=0,
        **sizes,
    )


def state_of(folder: Path) -> dict:
    return torch.load(folder / "weights" / "last" / "state.pt", weights_only=True)


def test_a_run_scores_draws_and_describes_itself(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer_task(recipe) == "detection"
    folder = run.train(recipe)
    out = capsys.readouterr().out
    assert "10 classes, train 14, val 4 images" in out and "boxes and masks" in out
    assert folder.parent.name == "detection"
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for name in ("AP", "AP50", "AP75", "AR100", "mask_AP", "mask_AP50"):
        assert all(0 <= float(row[name]) <= 1 for row in rows), name
    drawn = ("results", "pr_curves_box", "pr_curves_mask", "class_ap", "samples")
    assert all((folder / f"{name}.png").stat().st_size > 2000 for name in drawn)
    assert len((folder / "val.txt").read_text().splitlines()) == 4

    model, card = zoo.load_model(folder)
    assert isinstance(model, Detector)
    assert (card["task"], card["classes"], card["category_ids"]) == (
        "detection",
        [str(i) for i in range(10)],
        list(range(1, 11)),
    )
    assert card["architecture"] == json.loads(json.dumps(SMALL.to_dict()))
    assert card["preprocessing"] == {"short_side": 64, "long_side": 96}
    assert validate(folder, workers=0, device="cpu")["box"]["AP"] == pytest.approx(card["score"]["value"])
    assert card["score"]["value"] == max(float(row["AP"]) for row in rows) or card["score"]["value"] == pytest.approx(
        max(float(row["AP"]) for row in rows), rel=1e-5
    )


def test_losses_fall(recipe: Recipe) -> None:
    task = open_task(recipe)
    batch = next(iter(task.train_loader(4, pin=False)))
    optimizer = torch.optim.AdamW(task.model.train().parameters(), 2e-3)
    losses = []
    for step in range(25):
        loss = task.loss(task.model, batch, step)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_continues_exactly(start, scenes: Path, small: Path, ranks: int) -> None:
    options = {"data": scenes, "model": small, "task": "detection", "accumulate": 2, "ema": 0.9, "save_every": 1}
    options |= {"batch": 2 // ranks, "epochs": 2, "workers": 1, **INPUT}
    whole = start("whole", ranks=ranks, **options)
    assert whole.end() == 0, whole.text()
    steps = len(whole.losses())
    assert steps == 14
    if ranks > 1:
        assert "batch norms of the heads are not synchronised" in whole.text()
        assert all(len(set(line.split("\t")[1:])) == ranks for line in whole.losses())
    killed = start("killed", ranks=ranks, **options)
    killed.wait_for(random.randrange(4, steps - 3))
    killed.kill()
    assert len(killed.losses()) < steps
    resumed = start(ranks=ranks, resume=killed.folder)
    assert resumed.end() == 0, resumed.text()
    assert resumed.losses() == whole.losses()
    ours, theirs = state_of(resumed.folder), state_of(whole.folder)
    for part in ("model", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items()), part
    assert any(name.endswith("running_mean") for name in ours["ema"])


def test_a_run_measured_in_updates_ends_in_the_middle_of_an_epoch(recipe: Recipe) -> None:
    steps = dataclasses.replace(
        recipe, updates=5, warmup_updates=2, decay_at=(3, 4), accumulate=2, warmup_lr=1e-6, plots=False
    )
    folder = run.train(steps)
    progress = state_of(folder)["progress"]
    # Seven batches are four updates, so the fifth is the first of the second epoch.
    assert (progress["update"], progress["step"], progress["finished"]) == (5, 9, True)
    assert load_recipe(folder / "args.yaml").epochs == 2
    assert [row["lr"] for row in progress["results"]] == [pytest.approx(1e-4), pytest.approx(1e-5)]
    with pytest.raises(UserError, match="is finished"):
        run.train(Recipe(resume=str(folder)))


def test_a_run_that_died_before_its_last_validation_only_validates(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_: job.Job) -> None:
        raise job.Interrupted

    steps = dataclasses.replace(recipe, updates=3, save_every=1, plots=False, name="dies")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job.Job, "end_epoch", dies)
        run.train(steps)
    folder = Path(recipe.out_dir) / "detection" / "dies"
    before = state_of(folder)
    assert (before["progress"]["update"], before["progress"]["finished"]) == (3, False)
    run.train(Recipe(resume=str(folder)))
    after = state_of(folder)
    assert (after["progress"]["update"], after["progress"]["step"], after["progress"]["finished"]) == (3, 3, True)
    assert len((folder / "losses.txt").read_text().splitlines()) == 3
    assert all(torch.equal(value, before["model"][name]) for name, value in after["model"].items())


def test_updates_have_to_be_given_where_they_are_counted(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="count updates"):
        run.train(dataclasses.replace(recipe, decay_at=(3, 4)))


def test_the_memory_probe_leaves_no_trace(recipe: Recipe) -> None:
    task = open_task(recipe)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    plain = memory.estimate(task.model.train(), task.probe, recipe)
    task.model.set_grad_checkpointing(True)
    assert 0 < memory.estimate(task.model, task.probe, recipe).per_sample < plain.per_sample
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({"freeze": "backbone"}, ("neck.", "rpn.", "roi_heads.")),
        ({"tune": "head"}, ("roi_heads.box_predictors.", "roi_heads.mask_predictor.")),
    ],
)
def test_what_stays_trainable(options: dict, starts: tuple[str, ...]) -> None:
    model = Detector(SMALL)
    frozen = freeze(model, Recipe(**options))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(starts)}
    inside = {id(p) for module in frozen for p in module.parameters()}
    assert inside == {id(p) for p in model.parameters() if not p.requires_grad}


def test_numbers_freeze_stem_and_first_blocks() -> None:
    model = Detector(SMALL)
    freeze(model, Recipe(freeze="1"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.model.patch_embed", "backbone.model.blocks.0.")) for name in trained)
    assert any(name.startswith("backbone.model.blocks.1.") for name in trained)
    with pytest.raises(UserError, match=r"Accepted: backbone, or a number 0\.\.2"):
        freeze(model, Recipe(freeze="3"))


def test_other_classes_start_the_predictors_anew_and_say_so(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SMALL.replace(num_classes=3)
    state = Detector(other).state_dict()
    card = {"task": "detection", "model": "small", "architecture": other.to_dict(), "classes": ["a", "b", "c"]}
    checkpoint.save(tmp_path / "three.safetensors", state, card)
    again = {"architecture": SMALL.to_dict(), "classes": [str(i) for i in reversed(range(10))]}
    ten = Detector(SMALL).state_dict()
    checkpoint.save(tmp_path / "turned.safetensors", ten, card | again)
    for name, source, said in (("three", state, "3 classes"), ("turned", ten, "10 classes")):
        for model in (None, recipe.model):
            capsys.readouterr()
            words = {"model": model, "weights": str(tmp_path / f"{name}.safetensors")}
            own = open_task(dataclasses.replace(recipe, **words)).model.state_dict()
            err = capsys.readouterr().err
            assert f"trained on {said}, the data have 10" in err and "start anew" in err
            assert torch.equal(own["rpn.head.cls_logits.weight"], source["rpn.head.cls_logits.weight"])
            head = "roi_heads.box_predictors.0.cls_score.weight"
            assert own[head].shape[0] == 11 and not torch.equal(own[head][:4], source[head][:4])


def test_own_weights_of_the_same_classes_are_kept(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.train(dataclasses.replace(recipe, epochs=1, plots=False))
    capsys.readouterr()
    task = open_task(dataclasses.replace(recipe, model=None, weights=str(folder)))
    assert "start anew" not in capsys.readouterr().err
    best = checkpoint.read(folder)[0]
    assert all(torch.equal(value, best[name]) for name, value in task.model.state_dict().items())


def test_an_image_network_starts_the_backbone(recipe: Recipe, tmp_path: Path) -> None:
    config = SMALL.backbone.replace(num_classes=5)
    model = zoo.create_model("mvitv2_micro", **{k: v for k, v in config.to_dict().items() if k != "input_size"})
    checkpoint.save(
        tmp_path / "image.safetensors",
        model.state_dict(),
        {"task": "image", "model": "micro", "architecture": model.config.to_dict(), "classes": list("abcde")},
    )
    task = open_task(dataclasses.replace(recipe, weights=str(tmp_path / "image.safetensors")))
    own = task.model.state_dict()
    assert torch.equal(own["backbone.model.blocks.1.attn.qkv.weight"], model.state_dict()["blocks.1.attn.qkv.weight"])


def test_unreadable_pictures_are_named_and_left_out_of_the_scores(recipe: Recipe, tmp_path: Path) -> None:
    data = write_digit_scenes(tmp_path / "scenes", train=8, val=3)
    (data / "train" / "00003.jpg").write_bytes(b"no picture")
    (data / "val" / "00002.jpg").write_bytes((data / "val" / "00002.jpg").read_bytes()[:300])
    Image.new("RGB", (40, 30)).save(data / "train" / "00005.jpg")
    folder = run.train(dataclasses.replace(recipe, data=str(data), epochs=1, max_bad=0.5))
    named = (folder / "bad_files.txt").read_text()
    assert "00003.jpg" in named and "00002.jpg" in named
    assert re.search(r"00005\.jpg\tthe picture is 40x30, and its annotations are for \d+x\d+\n", named)
    assert "1 validation images cannot be read and are left out of the scores" in (folder / "log.txt").read_text()


def test_a_network_that_is_not_finite_stops_with_the_files(start, scenes: Path, small: Path) -> None:
    options = {"data": scenes, "model": small, "task": "detection", "batch": 2, "workers": 0, "save_every": 1, **INPUT}
    training = start(damage="nan,4", **options)
    assert training.end() == 2
    assert "The loss is no longer finite at step 4" in training.text() and "Traceback" not in training.text()
    assert len((training.folder / "bad_batch.txt").read_text().splitlines()) == 2


def test_pipelines_follow_the_recipe() -> None:
    published = augmentation(Recipe(), 800)
    assert published.short_sides == tuple(range(480, 801, 32)) and published.long_side == 1333
    assert (published.crop_short_sides, published.crop_range, published.flip) == ((400, 500, 600), (384, 600), 0.5)
    jitter = augmentation(Recipe(pipeline="lsj", grey_pad=True), 800)
    assert (jitter.kind, jitter.crop_size, jitter.jitter, jitter.grey_pad) == ("lsj", 1024, (0.1, 2.0), True)
    assert augmentation(Recipe(pipeline="none"), 800).short_sides == (800,)
    with pytest.raises(UserError, match="imgsz is 640 and pipeline is multiscale"):
        augmentation(Recipe(imgsz=640), 800)


def test_pictures_per_class_count_a_picture_once(recipe: Recipe) -> None:
    from openmvit.data.detection_layouts import open_detection

    table = open_detection(str(recipe.data)).splits["train"]
    counts = pictures_per_class(table, 10).tolist()
    expected = [0] * 10
    for i in range(len(table)):
        for label in set(table.annotations(i).labels.tolist()):
            expected[label] += 1
    assert counts == expected and math.fsum(counts) > 0


def test_a_validation_without_objects_is_told_of(recipe: Recipe, tmp_path: Path) -> None:
    data = write_digit_scenes(tmp_path / "scenes", train=2, val=1)
    assert not any("No validation image" in line for line in open_task(recipe).describe())
    file = next((data / "annotations").glob("*val*.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    lines = open_task(dataclasses.replace(recipe, data=str(data))).describe()
    assert any("No validation image holds an object" in line for line in lines)


def test_the_federated_loss_knows_the_training_pictures_of_each_class(recipe: Recipe, tmp_path: Path) -> None:
    """At the start of a run and where it is taken up again."""
    large = SMALL.replace(scores="sigmoid", federated_classes=4)
    (tmp_path / "large.json").write_text(json.dumps(large.to_dict()))
    task = open_task(dataclasses.replace(recipe, model=str(tmp_path / "large.json")))
    for one in (task, open_task(task.recipe, task.about())):
        batch = next(iter(one.train_loader(2, pin=False)))
        assert math.isfinite(one.loss(one.model.train(), batch, 0))


def test_annotated_pictures_without_a_recipe_start_from_the_preset(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--model", str(recipe.model), "--weights", "none"]
    words = ["--epochs", "1", "--batch", "4", "--plots", "false", "--out-dir", str(tmp_path)]
    words += ["--sides", "48,64", "--short-side", "64", "--crop-prob", "0", "--device", "cpu", "--workers", "0"]
    assert main(["train", "--data", str(recipe.data), *start, *words]) == 0
    assert capsys.readouterr().out.startswith("Recipe detection/small, since the data are annotated images")
    used = load_recipe(tmp_path / "detection" / "exp" / "args.yaml")
    assert (used.decay, used.accumulate, used.weight_decay) == ("not_norms", 1, 0.05)
    first = tmp_path / "detection" / "exp"
    assert main(["train", "--data", str(recipe.data), "--weights", str(first), "--name", "on", *words]) == 0
    own, other = (json.loads((tmp_path / "detection" / n / "model.json").read_text()) for n in ("exp", "on"))
    assert (other["model"], other["architecture"]) == (own["model"], own["architecture"])


def test_training_survives_a_broken_annotation_of_each_kind(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = broken_coco(tmp_path / "broken", more=24)
    folder = run.train(dataclasses.replace(recipe, data=str(data), sides=(40, 48), short_side=48, long_side=64))
    assert "3 classes" in capsys.readouterr().out
    with (folder / "results.csv").open() as file:
        assert all(0 <= float(row["AP"]) <= 1 for row in csv.DictReader(file))
    named = (folder / "bad_files.txt").read_text()
    assert "zero.jpg" in named and "cut.jpg" in named
    assert zoo.load_model(folder)[1]["category_ids"] == [1, 2, 5]
