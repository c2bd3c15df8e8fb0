"""The demo digits are scikit-learn's, split for good, and open as class folders."""

import hashlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits

from openmvit.data.generated import load_digits, write_digits
from openmvit.data.images import open_images, read_image


def test_shipped_digits_are_scikit_learns():
    images, labels = load_digits()
    theirs = sklearn_digits()
    assert np.array_equal(images, theirs.images)
    assert np.array_equal(labels, theirs.target)


def test_written_folder(tmp_path):
    root = write_digits(tmp_path / "digits", size=40)
    data = open_images(root)
    assert data.classes == tuple("0123456789")
    sizes = {split: len(table) for split, table in data.splits.items()}
    unseen = sorted((root / "unseen").iterdir())
    assert len(unseen) == 20
    assert sum(sizes.values()) + len(unseen) == 1797
    assert abs(sizes["val"] / (sizes["train"] + sizes["val"]) - 0.2) < 0.003
    assert min(data.splits["val"].class_counts(10)) >= 34
    images, labels = load_digits()
    contents = {}
    for path in root.rglob("*.png"):
        number = int(path.stem.rpartition("_")[2])
        digit = path.stem[0] if path.parent.name == "unseen" else path.parent.name
        assert labels[number] == int(digit)
        contents[number] = path
    assert len(contents) == 1797
    image = read_image(contents[100])
    assert image.size == (40, 40)
    small = 255 - np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float)
    assert np.corrcoef(small.ravel(), images[100].ravel())[0, 1] > 0.97
    again = write_digits(tmp_path / "again", size=40)
    for path in (contents[number] for number in (0, 500, 1796)):
        twin = again / path.relative_to(root)
        assert hashlib.sha256(twin.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
