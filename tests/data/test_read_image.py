"""Every kind of image file becomes upright 8-bit RGB, and every damaged one a clear error."""

import numpy as np
import pytest
from PIL import Image

from openmvit.data.images import ImageReadError, read_image


@pytest.fixture
def gradient():
    rows, columns = np.mgrid[0:20, 0:30]
    return Image.fromarray(np.stack([columns * 8, rows * 12, (rows + columns) * 5], -1).astype(np.uint8))


def pixels(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.TIFF", "a.ppm"])
def test_lossless_formats_are_exact(tmp_path, gradient, name):
    gradient.save(tmp_path / name)
    assert np.array_equal(pixels(tmp_path / name), np.asarray(gradient))


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_lossy_formats_are_near(tmp_path, gradient, name):
    gradient.save(tmp_path / name, quality=95)
    assert abs(pixels(tmp_path / name) - np.asarray(gradient)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, gradient, orientation):
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Transpose that stores the turned image
    stored = gradient if orientation == 1 else gradient.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif"):
        stored.save(tmp_path / name, exif=exif)
        assert np.array_equal(pixels(tmp_path / name), np.asarray(gradient)), name
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert abs(pixels(tmp_path / "a.jpg") - np.asarray(gradient)).mean() < 4


def test_damaged_exif_is_upright(tmp_path, gradient):
    gradient.save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(gradient))


def test_grey_and_bilevel(tmp_path, gradient):
    grey = gradient.convert("L")
    grey.save(tmp_path / "l.png")
    assert np.array_equal(pixels(tmp_path / "l.png"), np.stack([np.asarray(grey)] * 3, -1))
    grey.convert("1").save(tmp_path / "1.png")
    assert set(np.unique(pixels(tmp_path / "1.png"))) == {0, 255}


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([200, 10, 20, 30, 140, 50])
    image.paste(1, (2, 0, 4, 2))
    image.save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png")[0].tolist() == [[200, 10, 20]] * 2 + [[30, 140, 50]] * 2
    for name in ("t.png", "t.gif"):
        image.save(tmp_path / name, transparency=0)
        assert pixels(tmp_path / name)[0].tolist() == [[255, 255, 255]] * 2 + [[30, 140, 50]] * 2, name
    image.save(tmp_path / "bytes.png", transparency=bytes([0, 255]))
    assert pixels(tmp_path / "bytes.png")[0].tolist() == [[255, 255, 255]] * 2 + [[30, 140, 50]] * 2


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = [0, 255, 51]
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert pixels(tmp_path / "rgba.png")[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8)).save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0].tolist() == [[100] * 3, [255] * 3]
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "trns.png", transparency=(1, 2, 3))
    assert (pixels(tmp_path / "trns.png") == 255).all()


def test_cmyk(tmp_path, gradient):
    for name in ("c.jpg", "c.tif"):
        gradient.convert("CMYK").save(tmp_path / name, quality=95)
        assert abs(pixels(tmp_path / name) - np.asarray(gradient)).mean() < 6, name


@pytest.mark.parametrize("name", ["g.png", "g.tif"])
def test_16_bit_grey_keeps_its_range(tmp_path, name):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert pixels(tmp_path / name)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_grey(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "f.tif")
    assert pixels(tmp_path / "f.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 7.5]], np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(ImageReadError, match=r"0\.\.7\.5 lie outside 0\.\.1") as caught:
        read_image(tmp_path / "wide.tif")
    assert caught.value.path == tmp_path / "wide.tif"


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: b"<html>not found</html>", "not an image"),
        (lambda data: b"\0" * len(data), "not an image"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_damaged_files(tmp_path, gradient, suffix, damage, reason):
    path = tmp_path / f"a.{suffix}"
    gradient.resize((300, 200)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ImageReadError, match=reason) as caught:
        read_image(path)
    assert caught.value.path == path
    assert str(tmp_path) not in caught.value.reason


def test_broken_png_chunk_and_missing_file(tmp_path, gradient):
    path = tmp_path / "a.png"
    gradient.save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ImageReadError):
        read_image(path)
    with pytest.raises(ImageReadError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageReadError):
        read_image(tmp_path)
