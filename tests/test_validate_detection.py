"""Scores of a detector: against its own finds, by classes, over processes, with augmentation, and what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openmvit
from detectors import CATEGORY_IDS, CLASSES, detector_file, recorded_picture
from openmvit import checkpoint
from openmvit.cli import main
from openmvit.errors import UserError
from openmvit.predict import coco_document
from openmvit.validate import results_text, validate

SCORE = 0.5
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures():
    """Six pictures of two sizes: parts of the recorded ones, turned and mirrored."""
    first, second = recorded_picture(0), recorded_picture(1)
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    return [first, second, first.transpose(flip), second.transpose(flip), first.crop((40, 20, 250, 200)), second]


def write_split(root, split, document, named=CLASSES, ids=CATEGORY_IDS):
    """A folder with the pictures and a COCO file, in which pictures are files of that folder."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures()[: len(document["images"])]):
        picture.save(folder / f"{number}.png")
    images = [image | {"file_name": f"{i}.png"} for i, image in enumerate(document["images"])]
    categories = [{"id": i, "name": n} for i, n in zip(ids, named, strict=True)]
    new = dict(zip(CATEGORY_IDS, ids, strict=True))
    rows = [row | {"category_id": new[row["category_id"]]} for row in document["annotations"]]
    content = {"images": images, "categories": categories, "annotations": rows}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A detector, and pictures annotated with what it finds in them itself."""
    folder = tmp_path_factory.mktemp("val")
    torch.set_num_threads(1)
    predictor = openmvit.load(detector_file(folder / "d.safetensors"), device="cpu")
    document = coco_document(predictor.predict(pictures(), score=SCORE), CLASSES, CATEGORY_IDS)
    assert len(document["annotations"]) > 12
    (folder / "own.json").write_text(json.dumps(document))
    for split in ("train", "val"):
        write_split(folder / "data", split, document)
    return folder


def own(place):
    return json.loads((place / "own.json").read_text())


def score(place, data=None, **options):
    return validate(place / "d.safetensors", data or place / "data", workers=0, device="cpu", **options)


def test_its_own_finds_are_all_right(place):
    """Boxes and masks as annotations are those that come out again: every object is found, nothing surer is wrong."""
    found = score(place)
    for kind in ("box", "mask"):
        assert list(found[kind]) == KEYS
        assert found[kind]["AP"] == pytest.approx(1.0) and found[kind]["AR100"] == pytest.approx(1.0)
    assert found["samples"] == 6 and found["unreadable"] == []
    counts = [sum(row["category_id"] == i for row in own(place)["annotations"]) for i in CATEGORY_IDS]
    assert [row["count"] for row in found["classes"]] == counts
    for row in found["classes"]:
        assert row["box_AP"] == row["mask_AP"] == (pytest.approx(1.0) if row["count"] else None)
    assert json.loads(json.dumps(found)) == found


def test_moved_annotations_score_as_the_oracle_says(place, tmp_path):
    """Half of the boxes are moved away; faster-coco-eval's numbers are pycocotools' for the same finds."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    document = own(place)
    for row in document["annotations"][::2]:
        row["bbox"][0] += row["bbox"][2] * 0.3
        row.pop("segmentation")
    for split in ("train", "val"):
        write_split(tmp_path / "data", split, document)
    found = score(place, tmp_path / "data", out=tmp_path / "out")
    truth = COCO()
    truth.dataset = json.loads((tmp_path / "data" / "val" / "_annotations.coco.json").read_text())
    truth.createIndex()
    oracle = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "results.json")), "bbox")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    assert list(found["box"].values()) == pytest.approx(oracle.stats.tolist(), abs=1e-6)
    assert 0.2 < found["box"]["AP"] < 0.95


def annotated_with(root, predictor, **options):
    """Data that are annotated with what is found one way."""
    finds = predictor.predict(pictures()[:2], score=SCORE, **options)
    document = coco_document(finds, CLASSES, CATEGORY_IDS)
    for split in ("train", "val"):
        write_split(root, split, document)
    return root


SMALL = {"short_side": 64, "long_side": 96}


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ({"batch": 2}, "2 per step"),
        ({"soft_nms": "gaussian"}, "gaussian soft suppression"),
        ({"tta": True}, "short side 32 to 96 in 9 steps, long side at most 320, mirrored too"),
    ],
)
def test_every_way_of_searching_is_that_of_predict(tmp_path, way, said):
    """What is found one way is all right when it is scored the same way, and not when it is scored plainly."""
    file = detector_file(tmp_path / "d.safetensors", preprocessing=SMALL)
    data = annotated_with(tmp_path / "data", openmvit.load(file, device="cpu"), **way)
    same, plain = (validate(file, data, workers=0, device="cpu", **options) for options in (way, {}))
    assert same["box"]["AP"] == pytest.approx(1.0) and same["mask"]["AP"] > 0.95, "some finds have no pixel"
    assert plain["box"]["AP"] < 0.95
    assert said in same["view"] and said not in plain["view"]
    assert plain["protocol"] == SMALL | {"tta": False, "batch": 1, "soft_nms": "none", "score_threshold": 0.05}
    changed = {"score_threshold": 0.001} if "soft_nms" in way else {}
    assert same["protocol"] == plain["protocol"] | way | changed


def test_imgsz_stands_for_the_short_side(tmp_path):
    small = detector_file(tmp_path / "s.safetensors", preprocessing=SMALL)
    data = annotated_with(tmp_path / "data", openmvit.load(small, device="cpu"))
    large = detector_file(tmp_path / "l.safetensors", preprocessing={"short_side": 96, "long_side": 144})
    same, plain = (validate(large, data, workers=0, device="cpu", **options) for options in ({"imgsz": 64}, {}))
    assert same["box"]["AP"] == pytest.approx(1.0) and plain["box"]["AP"] < 0.98
    assert {key: same["protocol"][key] for key in SMALL} == SMALL
    with pytest.raises(UserError, match="imgsz is 8"):
        validate(large, data, workers=0, device="cpu", imgsz=8)


def test_classes_are_matched_by_name(place, tmp_path):
    """Other numbers, other order, and one class less."""
    document = own(place)
    document["annotations"] = [row for row in document["annotations"] if row["category_id"] != CATEGORY_IDS[1]]
    for split in ("train", "val"):
        write_split(tmp_path / "data", split, document, ids=(7, 4, 1))
        file = tmp_path / "data" / split / "_annotations.coco.json"
        content = json.loads(file.read_text())
        content["categories"] = [one for one in content["categories"] if one["name"] != "bee"]
        file.write_text(json.dumps(content))
    found = score(place, tmp_path / "data", out=tmp_path / "out")
    assert [row["name"] for row in found["classes"]] == ["cat", "ant"]
    assert found["box"]["AP"] == pytest.approx(1.0) and found["mask"]["AP"] == pytest.approx(1.0)
    assert any("scored on 2 of the model's 3 classes" in note for note in found["notes"])
    assert {row["category_id"] for row in json.loads((tmp_path / "out" / "results.json").read_text())} == {1, 7}


def test_classes_that_the_model_does_not_know(place, tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path / "data", split, own(place), named=("ant", "dog", "cat"))
    with pytest.raises(UserError, match=r"1 classes that the model does not know, such as 'dog'.*ant, bee, cat"):
        score(place, tmp_path / "data")
    numbered = detector_file(tmp_path / "n.safetensors", classes=[])
    found = validate(numbered, tmp_path / "data", workers=0, device="cpu")
    assert found["box"]["AP"] == pytest.approx(1.0), "without names the category numbers decide"
    other = detector_file(tmp_path / "o.safetensors", classes=[], category_ids=[1, 2, 3])
    with pytest.raises(UserError, match="2 category numbers that the model does not know, such as 5"):
        validate(other, tmp_path / "data", workers=0, device="cpu")
    bare = detector_file(tmp_path / "b.safetensors", classes=[], category_ids=[])
    assert validate(bare, tmp_path / "data", workers=0, device="cpu")["box"]["AP"] == pytest.approx(1.0)


def test_files_that_cannot_be_used_are_left_out(place, tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path / "data", split, own(place))
    bad = [tmp_path / "data" / "val" / f"{i}.png" for i in (1, 4)]
    content = bad[0].read_bytes()
    bad[0].write_bytes(content[: len(content) // 2])
    Image.open(bad[1]).resize((50, 60)).save(bad[1])
    found = score(place, tmp_path / "data", out=tmp_path / "out")
    assert found["unreadable"] == [str(path) for path in bad] and found["samples"] == 4
    assert found["box"]["AP"] == pytest.approx(1.0) and found["box"]["AR100"] == pytest.approx(1.0)
    assert str(bad[0]) in results_text(found)
    assert (tmp_path / "out" / "samples.png").is_file()


def test_a_turned_picture_whose_sides_are_exchanged_is_scored(place, tmp_path):
    document = own(place)
    first = document["images"][0]
    first["height"], first["width"] = first["width"], first["height"]
    for row in document["annotations"]:
        if row["image_id"] == first["id"]:
            row.pop("segmentation")
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        write_split(tmp_path / "data", split, document)
        file = tmp_path / "data" / split / "0.png"
        Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    found = score(place, tmp_path / "data")
    assert found["samples"] == 6 and found["box"]["AP"] == pytest.approx(1.0)


def test_a_detector_that_gives_more_than_a_hundred_finds_is_scored_on_all(place, tmp_path):
    more = checkpoint.read(place / "d.safetensors")[1]["architecture"] | {"max_detections": 300}
    file = detector_file(tmp_path / "d.safetensors", architecture=more)
    found = validate(file, place / "data", workers=0, device="cpu")
    assert list(found["box"])[6:9] == ["AR1", "AR10", "AR300"]


def test_all_splits_together(place):
    found = score(place, split="all")
    assert found["samples"] == 12 and found["box"]["AP"] == pytest.approx(1.0)
    with pytest.raises(UserError, match="has no split 'test'"):
        score(place, split="test")


def test_a_held_out_split_is_the_one_that_was_written_down(place, tmp_path):
    write_split(tmp_path / "data", "train", own(place))
    (tmp_path / "data" / "train").rename(tmp_path / "flat")
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    detector_file(run / "weights" / "best.safetensors", data=str(tmp_path / "flat"))
    held = [str(tmp_path / "flat" / f"{i}.png") for i in (0, 3)]
    (run / "val.txt").write_text("\n".join(held))
    found = validate(run, workers=0, device="cpu")
    assert found["samples"] == 2 and found["box"]["AP"] == pytest.approx(1.0)
    assert any("the 2 samples that" in note for note in found["notes"])
    assert validate(run, split="train", workers=0, device="cpu")["samples"] == 4


def test_boxes_alone_have_no_scores_of_masks(place, tmp_path):
    document = own(place)
    document["annotations"] = [
        {key: value for key, value in row.items() if key != "segmentation"} for row in document["annotations"]
    ]
    for split in ("train", "val"):
        write_split(tmp_path / "data", split, document)
    found = score(place, tmp_path / "data", out=tmp_path / "out")
    assert found["mask"] is None and found["box"]["AP"] == pytest.approx(1.0)
    assert "mask" not in results_text(found) and "mask_AP" not in found["classes"][0]
    assert not (tmp_path / "out" / "pr_curves_mask.png").exists()


def test_the_command_prints_the_tables_and_leaves_pictures(place, tmp_path, capsys):
    argv = ["val", str(place / "d.safetensors"), "--data", str(place / "data"), "--workers", "0", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "x.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "x.json").read_text())
    assert lines[-1] == "val box_AP=1.0000 box_AP50=1.0000 mask_AP=1.0000 mask_AP50=1.0000 samples=6"
    assert lines[-5].split() == KEYS and lines[-4].split()[:2] == ["box", "1.0000"]
    head = next(i for i, line in enumerate(lines) if line.split() == ["class", "objects", "box", "AP", "mask", "AP"])
    for line, row in zip(lines[head + 1 :], (row for row in found["classes"] if row["count"]), strict=False):
        assert line.split() == [row["name"], str(row["count"]), "1.0000", "1.0000"]
    names = ["class_ap.png", "pr_curves_box.png", "pr_curves_mask.png", "results.json", "samples.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    sheet = np.asarray(Image.open(tmp_path / "out" / "samples.png"))
    assert sheet.shape[1] == 4 * 488 + 8 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 500


@pytest.mark.parametrize(("option", "value"), [("crop_ratio", 0.5), ("clips", 2), ("crops", 3)])
def test_options_of_classifiers_are_refused(place, option, value):
    name = option.replace("_", "-")
    with pytest.raises(UserError, match=f"--{name} does not belong to this model"):
        score(place, **{option: value})


def test_two_processes_score_as_one(place, tmp_path):
    """Each searches three of the six pictures, and both get the scores of all."""
    code = "import json, sys, torch\ntorch.set_num_threads(1)\nfrom openmvit.processes import rank\n"
    code += "from openmvit.validate import validate\n"
    code += "found = validate(sys.argv[1], sys.argv[2], workers=0, device='cpu', out=sys.argv[3])\n"
    code += "import os; open(sys.argv[3] + os.environ['RANK'] + '.json', 'w').write(json.dumps(found))\n"
    script = tmp_path / "job.py"
    script.write_text(code)
    for path in ("data",):
        for split in ("train", "val"):
            write_split(tmp_path / path, split, own(place))
    (tmp_path / "data" / "val" / "3.png").write_bytes(b"no picture")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    argv += [str(place / "d.safetensors"), str(tmp_path / "data"), str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = score(place, tmp_path / "data")
    for rank in (0, 1):
        assert json.loads(Path(f"{tmp_path / 'out'}{rank}.json").read_text()) == alone
    assert alone["samples"] == 5 and (tmp_path / "out" / "results.json").is_file()
