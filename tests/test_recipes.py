"""Every shipped recipe loads strictly, says what it stands for, builds its model, and states the published values."""

import re
from pathlib import Path

import pytest

from openmvit.architectures import model_config
from openmvit.errors import UserError
from openmvit.training import recipe_file
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import check_fields, dump_recipe, list_recipes, load_recipe, recipe_header

IMAGENET = [name for name in list_recipes() if name.startswith("imagenet/")]

# What the paper and the authors' configurations state, retyped: samples are images per update.
# name: (epochs, lr at that many samples, samples, weight decay, drop path, warm-up epochs, mix_prob, imgsz, classes)
PUBLISHED = {
    "mvitv2_tiny": (300, 2e-3, 2048, 0.05, 0.1, 70, 1, 224, 1000),
    "mvitv2_small": (300, 2e-3, 2048, 0.05, 0.1, 70, 1, 224, 1000),
    "mvitv2_base": (300, 2e-3, 2048, 0.05, 0.3, 70, 1, 224, 1000),
    "mvitv2_large": (300, 2e-3, 2048, 0.1, 0.5, 70, 1, 224, 1000),
    "mvitv1_base_16": (300, 2e-3, 2048, 0.05, 0.1, 70, 1, 224, 1000),
    "mvitv2_base_384": (30, 4e-5, 256, 0.05, 0.3, 5, 1, 384, 1000),
    "mvitv2_large_384": (30, 4e-5, 256, 0.1, 0.5, 5, 0, 384, 1000),
    "mvitv2_small_cls_in21k": (90, 6.75e-5, 256, 0.01, 0.1, 5, 1, 224, 19168),
    "mvitv2_base_cls_in21k": (90, 6.75e-5, 256, 0.01, 0.3, 5, 1, 224, 19168),
    "mvitv2_large_cls_in21k": (90, 1e-4, 256, 0.1, 0.5, 5, 1, 224, 19168),
    "mvitv2_huge_cls_in21k": (60, 1e-4, 256, 0.1, 0.8, 5, 1, 224, 19168),
    "mvitv2_large_cls_in21k_to_in1k_224": (30, 7e-5, 64, 0.05, 0.5, 5, 0, 224, 1000),
    "mvitv2_large_cls_in21k_to_in1k_384": (30, 7e-5, 64, 0.05, 0.5, 5, 0, 384, 1000),
    "mvitv2_huge_cls_in21k_to_in1k_224": (30, 7e-5, 64, 0.05, 0.8, 5, 0, 224, 1000),
    "mvitv2_huge_cls_in21k_to_in1k_384": (30, 7e-5, 64, 0.05, 0.8, 5, 0, 384, 1000),
    "mvitv2_huge_cls_in21k_to_in1k_512": (3, 4e-5, 256, 1e-8, 0.8, 0, 1, 512, 1000),
}


# name: (frames, stride, imgsz, epochs, lr, at so many clips, weight decay, drop path, mix_prob, repeats,
#        warm-up epochs, (clips, crops), classes)
CLIPS = {
    "kinetics/k400_mvitv2_small_16x4": (16, 4, 224, 200, 1.6e-3, 512, 0.05, 0.2, 1, 2, 30, (5, 1), 400),
    "kinetics/k400_mvitv2_base_32x3": (32, 3, 224, 200, 1.6e-3, 512, 0.05, 0.3, 1, 2, 30, (5, 1), 400),
    "kinetics/k400_mvitv2_small_16x4_in1k": (16, 4, 224, 100, 4.8e-4, 512, 0.05, 0.2, 1, 2, 5, (5, 1), 400),
    "kinetics/k400_mvitv2_base_32x3_in1k": (32, 3, 224, 100, 4.8e-4, 512, 0.05, 0.3, 1, 2, 5, (5, 1), 400),
    "kinetics/k400_mvitv2_small_16x4_in21k": (16, 4, 224, 75, 1.6e-4, 512, 0.05, 0.2, 1, 2, 5, (5, 1), 400),
    "kinetics/k400_mvitv2_base_32x3_in21k": (32, 3, 224, 75, 1.6e-4, 512, 0.05, 0.3, 1, 2, 5, (5, 1), 400),
    "kinetics/k400_mvitv2_large_16x4_in21k": (16, 4, 224, 75, 1.6e-4, 512, 0.05, 0.75, 1, 2, 5, (5, 1), 400),
    "kinetics/k400_mvitv2_large_40x3_312": (40, 3, 312, 30, 1.6e-5, 128, 1e-8, 0.75, 0, 1, 5, (5, 3), 400),
    "kinetics/k600_mvitv2_base_32x3": (32, 3, 224, 200, 1.6e-3, 512, 0.05, 0.3, 1, 2, 30, (5, 1), 600),
    "kinetics/k600_mvitv2_large_40x3_312": (40, 3, 312, 30, 1.6e-5, 128, 1e-8, 0.75, 0, 1, 5, (4, 3), 600),
    "kinetics/k700_mvitv2_base_32x3": (32, 3, 224, 200, 1.6e-3, 512, 0.05, 0.3, 1, 2, 30, (3, 3), 700),
    "kinetics/k700_mvitv2_large_40x3_312": (40, 3, 312, 30, 1.6e-5, 128, 1e-8, 0.75, 0, 1, 5, (3, 3), 700),
    "ssv2/mvitv2_small_16x4": (16, None, 224, 100, 0.02, 512, 1e-4, 0.4, 1, 1, 3, (1, 3), 174),
    "ssv2/mvitv2_base_32x3": (32, None, 224, 100, 0.02, 512, 1e-4, 0.4, 1, 1, 3, (1, 3), 174),
    "ssv2/mvitv2_large_40x3_312": (40, None, 312, 40, 0.02, 128, 1e-4, 0.75, 0, 1, 3, (1, 3), 174),
}  # fmt: skip


def test_the_clip_recipes_are_the_published_ones():
    assert sorted(CLIPS) == [name for name in list_recipes() if name.startswith(("kinetics/", "ssv2/"))]


@pytest.mark.parametrize("name", CLIPS)
def test_published_values_of_clips(name):
    r, header = load_recipe(name), recipe_header(name)
    peak = r.lr * CLIPS[name][5] / r.lr_batch
    found = (r.frames, r.stride, r.imgsz, r.epochs, peak, CLIPS[name][5], r.weight_decay, r.drop_path)
    found += (r.mix_prob, r.repeats, r.warmup_epochs, (r.clips, r.crops), header.num_classes)
    assert found == CLIPS[name]
    assert r.model == re.search(r"mvitv2_[a-z]+_\d+x\d", name)[0]


@pytest.mark.parametrize("name", CLIPS)
def test_values_shared_by_every_clip_recipe(name):
    r, segments = load_recipe(name), name.startswith("ssv2/")
    assert (r.auto_augment, r.erase, r.label_smoothing) == ("rand-m7-n4-mstd0.5-inc1", 0.25, 0.1)
    assert (r.mixup, r.cutmix, r.mix_switch, r.dropout, r.ema) == (0.8, 1.0, 0.5, 0.5, 0.0)
    large = "large" in name
    assert r.mean == ((0.485, 0.456, 0.406) if large else (0.45, 0.45, 0.45))
    assert (r.sampling, r.flip) == (("segments", 0.0) if segments else ("span", 0.5))
    assert r.jitter == ((356, 446) if large else (256, 320)) if segments else r.jitter is None
    assert (r.optimizer, r.clip_grad) == (("sgd", 2.0 if large else 0.0) if segments else ("adamw", 1.0))
    assert not r.still and r.inflation == "centre"


_3X = (52500, 62500)
# name: (weights, updates, lr at 64 images, decays at, drop path, pipeline)
COCO = {
    "mask_rcnn_mvitv2_tiny": ("mvitv2_tiny.fb_in1k", 67500, 1.6e-4, _3X, 0.2, "multiscale"),
    "mask_rcnn_mvitv2_small": ("mvitv2_small.fb_in1k", 67500, 1.6e-4, _3X, 0.2, "multiscale"),
    "mask_rcnn_mvitv2_base": ("mvitv2_base.fb_in1k", 67500, 1.6e-4, _3X, 0.4, "multiscale"),
    "mask_rcnn_mvitv2_large": ("mvitv2_large_cls.fb_in21k", 67500, 1.6e-4, _3X, 0.5, "multiscale"),
    "cascade_mask_rcnn_mvitv2_tiny": ("mvitv2_tiny.fb_in1k", 67500, 1.6e-4, _3X, 0.2, "multiscale"),
    "cascade_mask_rcnn_mvitv2_small": ("mvitv2_small.fb_in1k", 67500, 1.6e-4, _3X, 0.2, "multiscale"),
    "cascade_mask_rcnn_mvitv2_base": ("mvitv2_base.fb_in1k", 67500, 1.6e-4, _3X, 0.4, "multiscale"),
    "cascade_mask_rcnn_mvitv2_base_in21k": ("mvitv2_base_cls.fb_in21k", 67500, 1.6e-4, _3X, 0.4, "multiscale"),
    "cascade_mask_rcnn_mvitv2_large_lsj": ("mvitv2_large_cls.fb_in21k", 92187, 1e-4, (81944, 88773), 0.5, "lsj"),
    "cascade_mask_rcnn_mvitv2_huge_lsj": ("mvitv2_huge_cls.fb_in21k", 67500, 1.6e-4, _3X, 0.6, "lsj"),
}  # fmt: skip


def test_the_coco_recipes_are_the_published_ones():
    assert sorted(f"coco/{name}" for name in COCO) == [name for name in list_recipes() if name.startswith("coco/")]


@pytest.mark.parametrize("name", COCO)
def test_published_values_of_detectors(name):
    r, header = load_recipe(f"coco/{name}"), recipe_header(f"coco/{name}")
    assert (r.weights, r.updates, r.lr, r.decay_at, r.drop_path, r.pipeline) == COCO[name]
    assert r.model == re.match(r"\w+rcnn_mvitv2_[a-z]+", name)[0].removesuffix("_in").removesuffix("_lsj")
    assert (r.lr_batch, r.warmup_updates, r.warmup_lr / r.lr) == (
        64,
        250,
        pytest.approx(1e-3),
    ) and header.num_classes == 80
    assert (r.optimizer, r.betas, r.weight_decay, r.decay) == ("adamw", (0.9, 0.999), 0.1, "not_norms")
    assert (r.clip_grad, r.layer_decay, r.ema, r.amp, r.flip) == (0.0, 1.0, 0.0, "fp16", 0.5)
    assert (r.sides, r.short_side, r.long_side, r.aspect_groups) == ((480, 800), 800, 1333, True)
    assert (r.crop_prob, r.crop_sides, r.crop_range) == (0.5, (400, 500, 600), (384, 600))
    if r.pipeline == "lsj":
        assert (r.imgsz, r.scales, r.grey_pad) == (1024, (0.1, 2.0), True)


@pytest.mark.parametrize("name", [n for n in list_recipes() if "rcnn" in (load_recipe(n).model or "")])
def test_detector_builds_with_the_recipes_values(name):
    import torch

    from openmvit.detection.detector import Detector
    from openmvit.zoo.detectors import detector_config

    recipe, classes = load_recipe(name), recipe_header(name).num_classes
    changes = {"num_classes": classes} | ({"drop_path_rate": recipe.drop_path} if recipe.drop_path is not None else {})
    with torch.device("meta"):
        model = Detector(detector_config(recipe.model, **changes))
    assert model.config.num_classes == classes
    assert recipe.drop_path is None or model.config.backbone.drop_path_rate == recipe.drop_path
    start = recipe.weights.partition(".")[0]
    if start not in ("none", "default"):
        assert model.config.backbone.embed_dim == model_config(start).embed_dim
        assert model.config.backbone.depths == model_config(start).depths
        assert model.config.backbone.dim_mul_in_attention == model_config(start).dim_mul_in_attention


def test_the_imagenet_recipes_are_the_published_ones():
    assert sorted(IMAGENET) == sorted(f"imagenet/{name}" for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    recipe, header = load_recipe(f"imagenet/{name}"), recipe_header(f"imagenet/{name}")
    epochs, lr, samples, weight_decay, drop_path, warmup, mix_prob, imgsz, classes = PUBLISHED[name]
    assert (recipe.epochs, recipe.warmup_epochs, recipe.mix_prob, recipe.imgsz) == (epochs, warmup, mix_prob, imgsz)
    assert recipe.lr * samples / recipe.lr_batch == pytest.approx(lr, rel=1e-12)
    assert (recipe.weight_decay, recipe.drop_path, header.num_classes) == (weight_decay, drop_path, classes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_shared_by_every_imagenet_recipe(name):
    recipe = load_recipe(f"imagenet/{name}")
    assert recipe.auto_augment == "rand-m9-n6-mstd0.5-inc1"
    assert (recipe.mixup, recipe.cutmix, recipe.mix_switch, recipe.label_smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (recipe.erase, recipe.flip, recipe.repeats, recipe.ema, recipe.amp) == (0.25, 0.5, 1, 0.0, "off")
    assert (recipe.optimizer, recipe.betas, recipe.clip_grad) == ("adamw", (0.9, 0.999), 1.0)
    assert (recipe.layer_decay, recipe.dropout, recipe.crop_ratio) == (1.0, 0.0, 0.875)
    # 8e-8 and 8e-6 at 2,048 images, on the scale of every recipe.
    per_2048 = 2048 / recipe.lr_batch
    assert recipe.warmup_lr * per_2048 == pytest.approx(8e-8) and recipe.min_lr * per_2048 == pytest.approx(8e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_starting_point_is_stated(name):
    weights = load_recipe(f"imagenet/{name}").weights
    if "512" in name:
        assert weights.startswith("runs/image/")
    else:
        assert weights == ("fb_in21k" if "in21k_to" in name else "fb_in1k" if "384" in name else "none")


@pytest.mark.parametrize("name", list_recipes())
def test_head_comment_is_complete(name):
    header = recipe_header(name)
    assert f"train {name} " in header.command + " "
    assert header.num_classes > 1
    if header.status == "not yet run":
        assert "measured here" not in header.expected


@pytest.mark.parametrize("name", [n for n in list_recipes() if "rcnn" not in (load_recipe(n).model or "")])
def test_model_builds_at_the_recipes_size(name):
    import torch

    from openmvit.zoo import create_model

    recipe, classes = load_recipe(name), recipe_header(name).num_classes
    changes = {"drop_path_rate": recipe.drop_path, "drop_rate": recipe.dropout, "img_size": recipe.imgsz}
    changes["num_frames"] = recipe.frames
    changes = {key: value for key, value in changes.items() if value is not None}
    with torch.device("meta"):
        model = create_model(recipe.model, num_classes=classes, **changes)
    assert model.config.num_classes == classes
    assert recipe.imgsz is None or set(model.config.input_size[-2:]) == {recipe.imgsz}
    assert recipe.drop_path is None or model.config.drop_path_rate == recipe.drop_path
    assert recipe.frames is None or model.config.input_size[0] == recipe.frames
    side = recipe.imgsz or model.config.input_size[-1]
    logits = model.eval()(torch.empty(1, 3, *model.config.input_size[:-2], side, side, device="meta"))
    assert logits.shape == (1, classes)


@pytest.mark.parametrize("path", sorted(recipe_file.FOLDER.rglob("*.yaml")), ids=lambda p: p.stem)
def test_recipe_files_are_plain_ascii(path: Path):
    text = path.read_bytes().decode("ascii")
    assert "\t" not in text and all(len(line) <= 120 for line in text.splitlines())


def test_a_written_recipe_loads_back_equal(tmp_path):
    recipe = check_fields(
        {"freeze": 6, "batch": "auto", "lr": 1 / 3, "name": "3", "amp": "off", "data": "a: #b \u00e9"}
    )
    assert (recipe.freeze, recipe.batch) == ("6", "auto")
    dump_recipe(recipe, tmp_path / "args.yaml")
    assert load_recipe(tmp_path / "args.yaml") == recipe
    assert [p.name for p in tmp_path.iterdir()] == ["args.yaml"]
    for name in list_recipes():
        dump_recipe(load_recipe(name), tmp_path / "args.yaml")
        assert load_recipe(tmp_path / "args.yaml") == load_recipe(name)


def test_defaults_pass_their_own_check():
    assert check_fields({}) == Recipe()
    assert check_fields(vars(Recipe())) == Recipe()


def test_overrides_win_and_are_checked():
    assert load_recipe("imagenet/mvitv2_small", {"epochs": 3, "lr": "5e-4"}).epochs == 3
    with pytest.raises(UserError, match="Did you mean 'epochs'"):
        load_recipe("imagenet/mvitv2_small", {"epoch": 3})


def test_text_forms_of_yaml_1_1_are_read_as_meant(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("lr: 5e-4\namp: off\ndrop_path: null\nplots: false\nwarmup_epochs: 5\nname: 2026-01-02\n")
    recipe = load_recipe(path)
    assert (recipe.lr, recipe.amp, recipe.drop_path, recipe.plots) == (5e-4, "off", None, False)
    assert isinstance(recipe.warmup_epochs, float) and recipe.name == "2026-01-02"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("xyzzy: 1\n", ["no option 'xyzzy'", "The nearest of "]),
        ("epoch: 300\n", ["'epoch'", "Did you mean 'epochs'"]),
        ("epochs: 300.0\n", ["epochs is 300.0", "a whole number"]),
        ("epochs: true\n", ["epochs is True", "a whole number"]),
        ("epochs: 0\n", ["epochs is 0", "at least 1"]),
        ("lr: fast\n", ["lr is 'fast'", "a number"]),
        ("lr: .nan\n", ["lr is nan", "a number"]),
        ("lr: -1.0\n", ["lr is -1.0", "above 0"]),
        ("plots: yes\n", ["plots is 'yes'", "true or false"]),
        ("optimizer: adam\n", ["optimizer is 'adam'", "adamw, sgd", "Did you mean 'adamw'"]),
        ("amp: true\n", ["amp is True", "off, bf16, fp16"]),
        ("batch: large\n", ["batch is 'large'", "a whole number or auto"]),
        ("mean: [0.5, 0.5]\n", ["mean is [0.5, 0.5]", "a list of 3 numbers"]),
        ("data: [a, b]\n", ["data is ['a', 'b']", "text or null"]),
        ("flip: 1.5\n", ["flip is 1.5", "0 to 1"]),
        ("crop_scale: [1.0, 0.08]\n", ["crop_scale is (1.0, 0.08)", "the smaller first"]),
        ("lr: 1\nlr: 2\n", ["line 2", "lr is given twice"]),
        ("lr: [1\n", ["cannot be read", "one `key: value` per line"]),
        ("- lr\n", ["holds no options"]),
        ("extends: imagenet/mvitv2_tiny\n", ["imagenet/mvitv2_small", "Only one level"]),
        ("extends: imagenet/mvitv2_smal\n", ["'imagenet/mvitv2_smal'", "Did you mean 'imagenet/mvitv2_small'"]),
    ],
)
def test_bad_recipes_name_key_value_and_fix(tmp_path, text, words):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_a_recipe_extends_a_file_beside_it(tmp_path):
    (tmp_path / "parent.yaml").write_text("epochs: 7\nlr: 1.0e-3\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nlr: 2.0e-3\n")
    recipe = load_recipe(tmp_path / "child.yaml")
    assert (recipe.epochs, recipe.lr) == (7, 2e-3)


@pytest.mark.parametrize("missing", ["imagenet/mvitv2_smal", "no/such.yaml"])
def test_missing_recipe(missing):
    with pytest.raises(UserError, match="There is no recipe"):
        load_recipe(missing)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (("# Status: not yet run\n", ""), "lacks status"),
        (("not yet run", "good"), "reproduced, partly run, not yet run"),
    ],
)
def test_damaged_head_comment(tmp_path, damage, words):
    text = (recipe_file.FOLDER / "imagenet/mvitv2_small.yaml").read_text()
    path = tmp_path / "r.yaml"
    path.write_text(text.replace(*damage))
    with pytest.raises(UserError, match=words):
        recipe_header(path)
