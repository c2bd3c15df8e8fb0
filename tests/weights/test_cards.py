"""What was released, as the cards have it: counts, names, facts, and what the commands show of them."""

import json
import re
from collections import Counter

import pytest

from openmvit import UserError, weights
from openmvit.architectures import ARCHITECTURES, DETECTORS, model_config
from openmvit.cli import main
from openmvit.convert import SOURCES
from openmvit.data.transforms import test_transform_from as image_transform_from
from openmvit.data.video_transforms import clip_sampling_from, clip_test_transform_from
from openmvit.info import describe, models_table

IMAGE = {"imgsz", "mean", "std", "crop_ratio", "interpolation"}
CLIP = {
    "imgsz", "mean", "std", "num_frames", "stride", "sampling", "clips", "crops", "short_side", "stored_side"
}  # fmt: skip


def test_counts():
    found = weights.cards()
    assert len(found) == 71
    assert sum(card.loadable for card in found) == 65
    assert len({card.name for card in found}) == len({card.url for card in found}) == 71
    assert Counter(card.source for card in found if card.loadable) == {
        "mvit": 7, "slowfast": 6 + 4 + 2 + 2, "pytorchvideo": 3, "torchvision": 2, "timm": 7, "mmaction2": 9 + 2,
        "mmpretrain": 4, "detectron2": 13, "huggingface": 4,
    }  # fmt: skip
    assert len([card for card in found if card.by_hand]) == 2


@pytest.mark.parametrize("card", weights.cards(), ids=lambda card: card.name)
def test_every_card_is_whole(card):
    if not card.loadable:
        assert card.source == "memvit"
        assert card.licence == "non-commercial"
        assert card.model not in ARCHITECTURES
        return
    assert card.source in (*SOURCES, "detectron2")
    assert card.licence in ("Apache-2.0", "BSD-3-Clause") or card.source == "huggingface"
    assert card.key in ("model_state", "state_dict", "model", "")
    assert bool(card.published) == bool(card.protocol)
    assert card.ours == "not measured"
    assert re.fullmatch(r"[0-9a-f]{8}|", card.sha256)
    assert card.sha256 in card.url
    if card.task == "detection":
        assert card.model in DETECTORS
        assert card.url.endswith(".pkl")
        assert card.preprocessing.keys() == {"short_side", "long_side"}
        return
    config = model_config(card.model, **card.settings)
    assert card.task == {2: "image", 3: "video"}[config.ndim]
    assert card.preprocessing.keys() == (IMAGE if config.ndim == 2 else CLIP)
    assert card.preprocessing["imgsz"] == config.input_size[-1]
    if config.ndim == 2:
        assert image_transform_from(card.preprocessing).imgsz == 224
    else:
        assert clip_sampling_from(card.preprocessing).num_frames == config.input_size[0]
        assert card.preprocessing["stride"] == int(card.model.rpartition("x")[2])
        assert clip_test_transform_from(card.preprocessing).crops in (1, 3)


# name: outputs, mean and std of red, rule, (clips, crops), short side, top-1, as published.
CLIP_CARDS = {
    "mvitv2_small_16x4.fb_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 81.0),
    "mvitv2_small_16x4.fb_ssv2": (174, (0.45, 0.225), "segments", (1, 3), 224, 68.2),
    "mvitv2_small_16x4.tv_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 80.757),
    "mvitv2_small_16x4.mm_k400": (400, (0.45, 0.225), "span", (5, 1), 224, 81.1),
    "mvitv2_small_16x4.mm_ssv2": (174, (0.485, 0.229), "segments", (1, 3), 224, 68.1),
    "mvitv2_small_16x4.mm_200e_k400": (400, (0.45, 0.225), "span", (5, 1), 224, 80.6),
    "mvitv2_small_16x4.mm_100e_ssv2": (174, (0.485, 0.229), "segments", (1, 3), 224, 68.2),
    "mvitv2_base_32x3.fb_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 82.9),
    "mvitv2_base_32x3.fb_ssv2": (174, (0.45, 0.225), "segments", (1, 3), 224, 70.5),
    "mvitv2_base_32x3.mm_k400": (400, (0.45, 0.225), "span", (5, 1), 224, 82.6),
    "mvitv2_base_32x3.mm_ssv2": (174, (0.45, 0.225), "segments", (1, 3), 224, 70.8),
    "mvitv2_large_40x3.fb_k400": (400, (0.485, 0.229), "span", (5, 3), 312, 86.1),
    "mvitv2_large_40x3.fb_ssv2": (174, (0.406, 0.225), "segments", (1, 3), 312, 73.3),
    "mvitv2_large_40x3.mm_k400": (400, (0.45, 0.225), "span", (5, 3), 312, 85.4),
    "mvitv2_large_40x3.mm_ssv2": (174, (0.45, 0.225), "segments", (1, 3), 312, 73.2),
    "mvitv1_base_16x4.ptv_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 78.85),
    "mvitv1_base_16x4.tv_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 78.477),
    "mvitv1_base_16x4.fb_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 78.4),
    "mvitv1_base_32x3.ptv_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 80.3),
    "mvitv1_base24_32x3.fb_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 80.4),
    "mvitv1_base24_32x3.fb_k600": (600, (0.45, 0.225), "span", (5, 1), 256, 83.9),
    "rev_mvit_base_16x4.fb_k400": (400, (0.45, 0.225), "span", (5, 1), 256, 78.4),
    "maskfeat_mvitv2_small_16x4.mm_k400": (400, (0.45, 0.225), "span", (10, 1), 224, 81.8),
    "maskfeat_mvitv2_small_16x4.mmself_k400": (400, (0.45, 0.225), "span", (10, 1), 224, 81.8),
}


def test_clip_cards_are_the_published_ones():
    found = {}
    for card in weights.cards():
        p = card.preprocessing
        if card.task == "video" and card.loadable and card.published:
            red, views = (p["mean"][0], p["std"][0]), (p["clips"], p["crops"])
            found[card.name] = (card.num_classes, red, p["sampling"], views, p["short_side"], card.published["top1"])
    assert found == CLIP_CARDS


def test_the_odd_statistics_are_swapped_for_red_and_blue_only():
    p = weights.find_card("mvitv2_large_40x3", "fb_ssv2").preprocessing
    assert (p["mean"], p["std"]) == ([0.406, 0.456, 0.485], [0.225, 0.224, 0.229])


def test_cards_are_found_by_tag_and_short_tag():
    assert weights.find_card("mvitv2_small", "in1k").name == "mvitv2_small.fb_in1k"
    assert weights.find_card("mvitv2_small_16x4").tag == "fb_k400"
    assert weights.find_card("mvitv2_small_16x4", "ssv2").tag == "fb_ssv2"
    assert weights.find_card("mvitv2_base_cls").num_classes == 19168
    # A file that has to be fetched by hand is nobody's default, but can be named.
    assert weights.find_card("mvitv1_base_16x4").tag == "ptv_k400"
    assert weights.find_card("mvitv1_base_16x4", "fb_k400").changes == {"pool_kv_at_stride_one": False}
    assert weights.find_card("maskfeat_mvitv2_small_16x4").num_classes == 400
    with pytest.raises(UserError, match="fb_in1k"):
        weights.find_card("mvitv2_small", "fb_in22k")
    with pytest.raises(UserError, match="No weights of mvitv1_base_24"):
        weights.find_card("mvitv1_base_24")


def test_models_lists_every_file(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    files = [card for row in rows for card in row["weights"]]
    assert len(files) == 71
    assert sum(card["loadable"] for card in files) == 65
    assert {row["name"] for row in rows if row["parameters"] is None} == {"memvit_16l_16x4", "memvit_24l_32x3"}
    assert main(["models", "mvitv1_base_16*"]) == 0
    text = capsys.readouterr().out
    assert "fb_in1k (by hand)" in text
    assert "download by hand, then openmvit convert FILE" in text
    assert [row["name"] for row in models_table("memvit*")] == ["memvit_16l_16x4", "memvit_24l_32x3"]


def test_info_shows_a_card_without_fetching_it(monkeypatch, capsys):
    monkeypatch.setenv("OPENMVIT_OFFLINE", "1")
    assert main(["info", "mvitv2_small_16x4.fb_ssv2"]) == 0
    text = capsys.readouterr().out
    for word in (
        "174 classes",
        "34,363,950",
        "model_state",
        "Apache-2.0",
        "top1=68.2",
        "ours: not measured",
        "segments",
    ):
        assert word in text, word
    assert main(["info", "memvit_16l_16x4.fb_k400_ava"]) == 0
    assert "listed only" in capsys.readouterr().out
    lvis = describe("cascade_mask_rcnn_mvitv2_base_ln.fb_in21k_lvis")
    assert (lvis["config"]["num_classes"], lvis["config"]["scores"]) == (1203, "sigmoid")
    first = describe("mvitv1_base_16x4.fb_k400")
    assert first["parameters"] == 36599536
    assert first["card"]["how"] == "download by hand, then openmvit convert FILE"
