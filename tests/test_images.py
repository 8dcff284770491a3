"""Image files as they are read."""

import pytest

pytest.importorskip("PIL", reason="images need Pillow")

import numpy as np
from PIL import Image, ImageOps

from ilm_plugins.errors import UserError
from ilm_plugins.images import read_image


def write(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 2, 3), value, np.uint8)).save(path, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_as_by_pillow(tmp_path, orientation):
    """Pillow would also write the EXIF data again, which fails for some."""
    pixels, exif = np.arange(24, dtype=np.uint8).reshape(2, 4, 3), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


def test_a_damaged_image_is_named(tmp_path):
    write(tmp_path / "a.png", 5)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:40] + b"????" + content[44:])
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        read_image(tmp_path / "a.png")


def test_a_gray_image_gets_three_colours(tmp_path):
    Image.new("L", (2, 3)).save(tmp_path / "b.png")
    assert np.asarray(read_image(tmp_path / "b.png")).shape == (3, 2, 3)


def test_an_image_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "c.tif")
    with pytest.raises(UserError, match="mode 'I;16', expected 8 bits"):
        read_image(tmp_path / "c.tif")


@pytest.mark.parametrize("content", [b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png cannot be read .*; remove or replace it"):
        read_image(tmp_path / "a.png")
