"""Samples are pure functions of (seed, epoch, index, copy), also where files are unreadable."""

import hashlib
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from openmvit.data.badfiles import BadFiles
from openmvit.data.images import ImageDataset, open_images
from openmvit.data.sampler import ResumableSampler
from openmvit.data.samples import LOST, REPLACED
from openmvit.data.transforms import TrainTransform
from openmvit.errors import UserError


@pytest.fixture
def root(tmp_path, fill):
    for k, name in enumerate(("cat", "dog")):
        fill(tmp_path / "set" / "train" / name, 8, 20 * k)
        fill(tmp_path / "set" / "val" / name, 1, 90 + k)
    return tmp_path / "set"


def dataset(root, seed=5):
    data = open_images(root)
    return ImageDataset(data.splits["train"], TrainTransform(32), seed=seed, multilabel=False, num_classes=2)


def samples(data, keys):
    return {key: data[key] for key in keys}


def equal(a, b):
    return all(torch.equal(a[key][name], b[key][name]) for key in a for name in a[key]) and a.keys() == b.keys()


KEYS = [(epoch, index) for epoch in (0, 1) for index in range(16)]


def test_contents_of_a_sample(root):
    sample = dataset(root)[(0, 9)]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == {
        "image": ((3, 32, 32), torch.float32),
        "label": ((), torch.int64),
        "index": ((), torch.int64),
        "bad": ((), torch.int64),
    }
    assert (int(sample["label"]), int(sample["index"]), int(sample["bad"])) == (1, 9, 0)


def test_every_part_of_the_key_and_the_seed_matter(root):
    data = dataset(root)
    images = [data[key]["image"] for key in ((0, 3), (1, 3), (0, 4), (0, 3, 1), (0, 3, 2))]
    images.append(dataset(root, seed=6)[(0, 3)]["image"])
    for i, image in enumerate(images):
        assert not any(torch.equal(image, other) for other in images[:i])
    assert torch.equal(images[0], data[(0, 3, 0)]["image"])


@pytest.mark.parametrize("damaged", [False, True])
def test_same_sample_in_any_order_with_any_workers(root, damaged):
    if damaged:
        for i in (0, 3, 4):
            (root / "train" / "cat" / f"{i:03d}.jpg").write_bytes(b"")
    data = dataset(root)
    expected = samples(data, KEYS)
    assert equal(samples(dataset(root), reversed(KEYS)) | {}, {key: expected[key] for key in reversed(KEYS)})
    for workers in (0, 2):
        for epoch in (0, 1):
            sampler = ResumableSampler(16, seed=epoch, shuffle=True)
            sampler.set_epoch(epoch)
            for batch in DataLoader(data, batch_size=5, sampler=sampler, num_workers=workers):
                for i, index in enumerate(batch["index"].tolist()):
                    for name, value in expected[(epoch, index)].items():
                        assert torch.equal(batch[name][i], value), (workers, epoch, index, name)
    bad = [int(expected[key]["bad"]) for key in KEYS]
    assert bad == [int(damaged and index in (0, 3, 4)) for _, index in KEYS]


SCRIPT = """
import hashlib, sys
from openmvit.data.images import ImageDataset, open_images
from openmvit.data.transforms import TrainTransform
table = open_images(sys.argv[1]).splits["train"]
data = ImageDataset(table, TrainTransform(32), seed=5, multilabel=False, num_classes=2)
print(hashlib.sha256(b"".join(data[(1, i)]["image"].numpy().tobytes() for i in (11, 2, 7))).hexdigest())
"""


def test_same_bits_in_another_interpreter(root):
    data = dataset(root)
    here = hashlib.sha256(b"".join(data[(1, i)]["image"].numpy().tobytes() for i in (11, 2, 7))).hexdigest()
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": hash_seed}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(root)], env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == here


def test_replacement_is_a_real_sample_with_its_own_label(root, fill):
    (root / "train" / "cat" / "002.jpg").write_bytes(b"broken")
    data = dataset(root)
    seen = set()
    for epoch in range(12):
        sample = data[(epoch, 2)]
        assert int(sample["bad"]) == REPLACED
        assert int(sample["index"]) == 2
        seen.add(int(sample["label"]))
    assert seen == {0, 1}


def test_nothing_readable_is_lost_and_stops(root, tmp_path):
    for path in root.glob("train/*/*.jpg"):
        path.write_bytes(b"")
    data = dataset(root)
    batch = next(
        iter(DataLoader(data, batch_size=4, sampler=ResumableSampler(16, seed=0, shuffle=True), num_workers=2))
    )
    assert batch["bad"].tolist() == [LOST] * 4
    bad_files = BadFiles(1.0, 16, tmp_path / "bad_files.txt")
    with pytest.raises(UserError, match=r"4 of 16 files cannot be read, the first is .*\(the file is empty\)"):
        bad_files.add(data.table, batch["index"], batch["bad"])


def test_multilabel_targets(tmp_path, fill):
    fill(tmp_path, 3)
    (tmp_path / "l.csv").write_text("path,label,split\n000.jpg,a;c,train\n001.jpg,b,train\n002.jpg,a,val\n")
    data = open_images(tmp_path / "l.csv")
    train = ImageDataset(data.splits["train"], TrainTransform(32), seed=0, multilabel=True, num_classes=3)
    assert train[(0, 0)]["label"].tolist() == [1.0, 0.0, 1.0]
    assert train[(0, 1)]["label"].tolist() == [0.0, 1.0, 0.0]


def test_bad_files_are_listed_once_and_limited(root, tmp_path):
    listed = tmp_path / "run" / "bad_files.txt"
    (root / "train" / "cat" / "002.jpg").write_bytes(b"")
    (root / "train" / "dog" / "001.jpg").write_bytes((root / "train" / "dog" / "001.jpg").read_bytes()[:200])
    data = dataset(root)
    bad_files = BadFiles(0.1, 16, listed)
    for epoch in (0, 1):
        bad_files.add(data.table, torch.tensor([2, 5]), torch.tensor([1, 0]))
        assert len(bad_files) == 1, epoch
    bad_files.add(data.table, torch.tensor([1, 5]), torch.tensor([0, 0]))
    assert listed.read_text() == f"{root}/train/cat/002.jpg\tthe file is empty\n"
    resumed = BadFiles(0.1, 16, listed)
    assert len(resumed) == 1
    with pytest.raises(UserError, match=r"2 of 16 .*bad_files.txt, or raise max_bad \(now 0.1\)"):
        resumed.add(data.table, torch.tensor([9]), torch.tensor([1]))
    lines = listed.read_text().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"{root}/train/dog/001.jpg\t")
    assert "truncated" in lines[1].lower()


def test_no_bad_file_leaves_no_list(root, tmp_path):
    bad_files = BadFiles(0.0, 16, tmp_path / "bad_files.txt")
    bad_files.add(dataset(root).table, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    assert not (tmp_path / "bad_files.txt").exists()
    bad_files.add(dataset(root).table, torch.arange(0), torch.zeros(0, dtype=torch.int64))
