"""Objects in pictures and videos: recorded finds, every kind of source, outputs, drawings, what is broken."""

import csv
import io
import json
import re
from collections import Counter

import av
import numpy as np
import pytest
import torch
from PIL import Image

import openmvit
from clipcolours import write_clip
from detectors import CATEGORY_IDS, CLASSES, detector_file, recorded_finds, recorded_picture
from openmvit.cli import main
from openmvit.data.video import open_video
from openmvit.predict import coco_document, detections_csv, detections_text


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detect")
    detector_file(folder / "detector.safetensors")
    recorded_picture(0, folder / "in" / "a.png")
    recorded_picture(1, folder / "in" / "sub" / "b.png")
    return folder


@pytest.fixture
def predictor(place):
    return openmvit.load(place / "detector.safetensors", device="cpu")


def equal(a, b):
    return np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and a.labels == b.labels


def test_the_recorded_finds_come_out(place, predictor):
    (found,) = predictor.predict(place / "in" / "a.png", score=0.0)
    expected = recorded_finds("alone.0")
    assert found.classes.tolist() == expected["classes"].tolist()
    assert found.labels == tuple(CLASSES[i] for i in expected["classes"].tolist())
    assert np.abs(found.boxes - expected["boxes"].numpy()).max() < 0.02
    assert np.abs(found.scores - expected["scores"].numpy()).max() < 2e-4
    assert found.size == (205, 270) and found.masks().shape == (12, 205, 270) and found.error == ""
    assert found.masks().dtype == bool and 0.01 < found.masks().mean() < 0.9


def test_a_picture_is_resized_and_the_finds_moved_back(place, predictor):
    """The second recorded picture, which its recording enlarged to 300 x 185 afterwards."""
    predictor.card["preprocessing"] = {"short_side": 150, "long_side": 243}
    picture = recorded_picture(1)
    (found,) = predictor.predict(picture, score=0.0)
    expected = recorded_finds("alone.1")
    assert found.classes.tolist() == expected["classes"].tolist()
    scale = np.array([185 / 150, 300 / 243] * 2)
    assert np.abs(found.boxes * scale - expected["boxes"].numpy()).max() < 0.02
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    (direct,) = predictor.model([pixels])
    assert np.array_equal(found.masks(), direct.masks().numpy())
    twice = picture.resize((300, 486), Image.Resampling.LANCZOS)
    large, small = predictor.predict([twice, twice.resize((150, 243), Image.Resampling.BILINEAR)], score=0.0)
    assert large.size == (486, 300) and large.masks().shape == (12, 486, 300)
    assert np.allclose(large.boxes, 2 * small.boxes) and np.array_equal(large.scores, small.scores)


def test_the_augmentation_joins_views(place, predictor):
    predictor.card["preprocessing"] = {"short_side": 64, "long_side": 96}
    (plain,), (found,) = (predictor.predict(place / "in" / "a.png", score=0.3, tta=tta) for tta in (False, True))
    assert len(found) and not equal(plain, found) and (found.scores > 0.3).all()
    assert (found.masks().sum(axis=(1, 2)) > 0).all()


def test_every_kind_of_source_in_order(place, predictor, monkeypatch):
    monkeypatch.chdir(place)
    image = recorded_picture(0)
    grey = np.asarray(image.convert("L"))
    sources = ["in/a.png", place / "in", "in/s*/*.png", np.asarray(image), image.convert("RGBA"), grey]
    found = predictor.predict(sources, score=0.3)
    names = [one.path for one in found]
    inside = [str(place / "in" / "a.png"), str(place / "in" / "sub" / "b.png")]
    assert names == ["in/a.png", *inside, "in/sub/b.png", "image 4", "image 5", "image 6"]
    assert all(equal(found[0], found[i]) for i in (1, 4, 5)) and equal(found[2], found[3])
    assert found[2].size == (243, 150) and not equal(found[0], found[6])
    for one in found:
        height, width = one.size
        assert (one.boxes >= 0).all() and (one.boxes[:, [0, 2]] <= width).all() and (one.boxes[:, 3] <= height).all()


def test_a_file_with_an_exif_entry_is_seen_upright(place, predictor, tmp_path):
    image = recorded_picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = predictor.predict([image, tmp_path / "turned.png"])
    assert turned.size == (205, 270) and equal(upright, turned) and len(turned)


def test_an_unreadable_file_is_an_answer(place, predictor, tmp_path):
    good = recorded_picture(0, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    (tmp_path / "c.mp4").write_bytes(b"no video")
    found = predictor.predict([tmp_path, good])
    assert [bool(one.error) for one in found] == [False, True, True, False]
    assert equal(found[0], found[3]) and len(found[1]) == 0 and found[1].masks().shape == (0, 0, 0)
    lines = detections_text(found).splitlines()
    assert len(lines) == 4 and "unreadable: " in lines[1] and "unreadable: " in lines[2]


def test_score_and_suppression(place, predictor):
    path = place / "in" / "a.png"
    (every,), (some,) = (predictor.predict(path, score=score) for score in (0.0, 0.65))
    assert 0 < len(some) < len(every) and (some.scores > 0.65).all()
    assert np.array_equal(every.boxes[: len(some)], some.boxes)
    model = predictor.model
    for method in ("linear", "gaussian"):
        (soft,) = predictor.predict(path, score=0.0, soft_nms=method)
        assert soft.scores[0] == every.scores[0] and not equal(soft, every)
        assert (np.diff(soft.scores) <= 0).all()
    assert model.roi_heads.config == model.config and not model.training


def test_a_batch_pads_and_changes_a_little(place, predictor):
    sources = [place / "in" / "a.png", place / "in" / "sub" / "b.png"]
    alone, together = (predictor.predict(sources, batch=n, score=0.0) for n in (1, 2))
    apart = [predictor.predict(source, score=0.0)[0] for source in sources]
    assert all(equal(a, b) for a, b in zip(alone, apart, strict=True))
    assert not all(equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"score": 1.5}, "score is 1.5"),
        ({"soft_nms": "hard"}, "soft_nms is 'hard'"),
        ({"batch": 0}, "batch is 0"),
        ({"hop": -1.0}, "hop is -1"),
    ],
)
def test_options_that_cannot_be_used(place, predictor, options, cause):
    with pytest.raises(openmvit.UserError, match=cause):
        predictor.predict(place / "in", **options)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("camera:0", "is live"),
        ("http://localhost/a.jpg", "images are read from files"),
        (np.zeros((4, 4), np.float32), "is no image"),
        ("empty", "holds no images or videos"),
        ("none.png", "There is no file or folder"),
    ],
)
def test_what_is_no_picture_is_refused(predictor, tmp_path, monkeypatch, source, cause):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(openmvit.UserError, match=cause):
        predictor.predict(source)


def test_coco_json_stands_alone(place, predictor):
    from pycocotools.coco import COCO

    found = predictor.predict([place / "in", np.zeros((40, 60, 3), np.uint8)], score=0.3)
    document = json.loads(json.dumps(coco_document(found, predictor.classes, predictor.category_ids)))
    assert [(i["file_name"], i["height"], i["width"]) for i in document["images"]] == [
        (one.path, *one.size) for one in found
    ]
    assert document["categories"] == [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    for number, one in enumerate(found, start=1):
        rows = coco.loadAnns(coco.getAnnIds(number))
        assert [row["score"] for row in rows] == one.scores.tolist()
        assert [coco.cats[row["category_id"]]["name"] for row in rows] == list(one.labels)
        for row, box, mask in zip(rows, one.boxes, one.masks(), strict=True):
            assert np.allclose(row["bbox"], [*box[:2], *(box[2:] - box[:2])])
            assert np.array_equal(coco.annToMask(row).astype(bool), mask) and row["area"] == mask.sum()


def test_csv_has_a_row_per_object(place, predictor, tmp_path):
    (tmp_path / "x.png").touch()
    found = predictor.predict([place / "in" / "a.png", tmp_path / "x.png"], score=0.3)
    rows = list(csv.DictReader(io.StringIO(detections_csv(found))))
    assert len(rows) == len(found[0]) + 1 and rows[-1]["error"] == "the file is empty" and rows[-1]["label"] == ""
    assert [row["label"] for row in rows[:-1]] == list(found[0].labels)
    assert [float(rows[0][key]) for key in ("x0", "y0", "x1", "y1")] == pytest.approx(found[0].boxes[0], abs=0.01)


def test_the_command_writes_table_json_csv_and_pictures(place, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["predict", str(place / "detector.safetensors"), str(place / "in"), "--device", "cpu", "--score", "0.3"]
    argv += ["--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv"), "--out", str(out)]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads((tmp_path / "x.json").read_text())
    counts = Counter(one["label"] for one in rows[0]["objects"])
    assert lines[0].endswith(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    assert lines[2] == f"2 files, saved to {out}"
    assert [row["output"] for row in rows] == [str(out / "a.png"), str(out / "sub" / "b.png")]
    assert {"label", "score", "box", "mask"} == set(rows[0]["objects"][0]) and rows[0]["height"] == 205
    assert sorted(path.name for path in out.rglob("*.*")) == ["a.png", "b.png", "detections.json"]
    drawn = np.asarray(Image.open(out / "a.png"))
    before = np.asarray(recorded_picture(0)).repeat(2, 0).repeat(2, 1)
    assert drawn.shape == before.shape and 0.02 < (drawn != before).any(axis=2).mean() < 1


def test_every_object_is_listed_on_request_and_the_best_where_there_is_none(place, capsys):
    argv = ["predict", str(place / "detector.safetensors"), str(place / "in" / "a.png"), "--device", "cpu"]
    assert main([*argv, "--score", "0.3", "--verbose"]) == 0
    assert re.search(r"\d+ objects: \w+ 0\.\d\d, ", capsys.readouterr().out)
    assert main([*argv, "--score", "0.999"]) == 0
    assert re.search(r"nothing above 0\.999; best 0\.\d\d$", capsys.readouterr().out, re.MULTILINE)


def test_a_detection_is_drawn_saved_and_told_as_json(place, tmp_path):
    (one,) = openmvit.load(place / "detector.safetensors", "cpu").predict(place / "in" / "a.png", score=0.3)
    assert len(json.loads(one.to_json())["objects"]) == len(one)
    assert np.array_equal(np.asarray(one.plot()), one.draw(recorded_picture(0)))
    assert one.save(tmp_path / "x.png") == tmp_path / "x.png" and (tmp_path / "x.png").exists()


@pytest.mark.parametrize("option", ["--top", "--timeline", "--seconds"])
def test_options_of_classifiers_are_refused(place, capsys, option):
    argv = [
        "predict",
        str(place / "detector.safetensors"),
        str(place / "in"),
        option,
        *["3"] * (option != "--timeline"),
    ]
    assert main(argv) == 2
    assert f"{option} does not belong to this network (detection)" in capsys.readouterr().err


def write_video(path, pictures, fps):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(place):
    """Eight frames, the first recorded picture sliding to the left over black."""
    picture = np.asarray(recorded_picture(0))[:204]
    return write_video(place / "clip.mp4", [np.roll(picture, -20 * i, axis=1) for i in range(8)], 10)


def test_a_video_is_searched_frame_by_frame(place, predictor, clip, tmp_path):
    found = predictor.predict(clip, score=0.3)
    assert [one.seconds for one in found] == pytest.approx([i / 10 for i in range(8)])
    with open_video(clip, "pyav") as video:
        frames = [Image.fromarray(frame) for frame in video.frames(range(8)).numpy()]
    assert all(equal(one, same) for one, same in zip(found, predictor.predict(frames, score=0.3), strict=True))
    some = predictor.predict(clip, hop=0.3, score=0.3)
    assert [one.seconds for one in some] == pytest.approx([0, 0.3, 0.6])
    assert all(equal(one, found[i]) for one, i in zip(some, (0, 3, 6), strict=True))
    (line,) = detections_text(found).splitlines()
    assert "8 frames, " in line and f"{sum(map(len, found))} objects: " in line
    document = coco_document(found, predictor.classes, predictor.category_ids)
    assert [row["seconds"] for row in document["images"]] == [one.seconds for one in found]

    written = predictor.draw(some, tmp_path / "out")
    assert [path.name for path in written] == ["clip.mp4", "detections.json"]
    with av.open(str(written[0])) as container:
        drawn = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(drawn) == 8 and drawn[0].shape[:2] == (2 * 204, 2 * 270)
    for i, picture in enumerate(drawn):
        distances = [np.abs(picture.astype(int) - one.draw(frames[i])).mean() for one in some]
        assert np.argmin(distances) == i // 3 and min(distances) < 10, "the objects of the last frame looked at"


def test_a_video_that_breaks_off_says_so_last(place, predictor, tmp_path):
    whole = write_clip(tmp_path / "cut.mkv", [(0, 240)], size=(64, 48))
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    found = predictor.predict(whole, hop=1.0)
    assert found[-1].error and not any(one.error for one in found[:-1]) and len(found) > 1
    (line,) = detections_text(found).splitlines()
    assert line.endswith(f"({found[-1].error})") and "frame" in line
    assert [path.suffix for path in predictor.draw(found, tmp_path / "out")] == [".mp4", ".json"]


def test_a_stream_gives_answers_one_by_one(place, predictor, clip):
    answers = predictor.stream([clip, place / "in" / "a.png"])
    assert next(answers).seconds == 0 and next(answers).seconds == pytest.approx(0.1)
    answers.close()


def test_a_card_without_names_or_sizes(place, predictor):
    from openmvit.predict.detection import DetectionPredictor

    bare = DetectionPredictor(predictor.model, predictor.card | {"classes": [], "category_ids": []})
    assert bare.classes == ("class 0", "class 1", "class 2") and bare.category_ids == (1, 2, 3)
    with pytest.raises(openmvit.UserError, match="lacks 'short_side'"):
        DetectionPredictor(predictor.model, predictor.card | {"preprocessing": {}})


def test_nothing_readable_is_an_error(place, tmp_path, capsys):
    (tmp_path / "x.png").touch()
    assert main(["predict", str(place / "detector.safetensors"), str(tmp_path), "--device", "cpu"]) == 2
    assert "The file cannot be read as an image" in capsys.readouterr().err
