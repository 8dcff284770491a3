"""Paired images: both layouts, both directions, the augmentation, and files that cannot be used."""

import pytest

pytest.importorskip("numpy", reason="needs numpy, of the extra ilm_plugins[data]")

import numpy as np
from PIL import Image

from ilm_plugins.errors import UserError
from ilm_plugins.pix2pix import pairs


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def test_halves_in_either_direction(tmp_path):
    pixels = noise(4, 12)
    save(tmp_path / "b.png", pixels)
    save(tmp_path / "a.png", noise(4, 12, seed=1))
    found = pairs.side_by_side(tmp_path)
    assert [p.name for p in found] == ["a", "b"]
    left, right = pixels[:, :6], pixels[:, 6:]
    for direction, expected in (("right-to-left", (right, left)), ("left-to-right", (left, right))):
        for image, half in zip(pairs.read_pair(found[1], direction), expected, strict=True):
            assert np.array_equal(np.asarray(image), half)


def test_two_folders_match_by_name_whatever_the_ending(tmp_path):
    for name in ("1", "2"):
        save(tmp_path / "labels" / f"{name}.png", noise(4, 6))
        save(tmp_path / "photos" / f"{name}.bmp", noise(4, 6, seed=1))
    found = pairs.two_folders(tmp_path / "labels", tmp_path / "photos")
    pairs.check_pairs(found)
    given, target = pairs.read_pair(found[0])
    assert np.array_equal(np.asarray(given), noise(4, 6))
    assert np.array_equal(np.asarray(target), noise(4, 6, seed=1))


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.fromarray(noise(4, 8)[..., 0]).save(tmp_path / "grey.png")
    Image.new("RGBA", (8, 4)).save(tmp_path / "clear.png")
    for pair in pairs.side_by_side(tmp_path):
        assert all(image.mode == "RGB" for image in pairs.read_pair(pair))


def test_jitter_crops_and_flips_both_alike():
    """The two images are each other's inverse, and stay so."""
    rows, columns = np.mgrid[:32, :32]
    ramp = np.stack([rows * 8, columns * 8, rows + columns], 2).astype(np.uint8)
    both = Image.fromarray(ramp), Image.fromarray(255 - ramp)
    outcomes = set()
    for seed in range(40):
        a, b = pairs.jitter(both, 32, 36, 0.5, np.random.default_rng(seed))
        assert a.shape == b.shape == (32, 32, 3)
        assert np.abs(a.astype(int) + b - 255).max() <= 2  # rounded twice
        flipped = bool(a[0, 0, 1] > a[0, -1, 1])
        outcomes.add((int(a[0, 0, 0]), flipped))
    assert {flipped for _, flipped in outcomes} == {False, True}
    assert len({top for top, _ in outcomes}) == 5  # 36 - 32 + 1 places
    again = pairs.jitter(both, 32, 36, 0.5, np.random.default_rng(39))
    assert np.array_equal(again[0], a) and np.array_equal(again[1], b)


def test_all_that_cannot_be_used_is_named_at_once(tmp_path):
    save(tmp_path / "fine.png", noise(4, 8))
    save(tmp_path / "odd.png", noise(4, 7))
    (tmp_path / "text.jpg").write_text("none")
    save(tmp_path / "cut.jpg", noise(64, 64))
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as raised:
        pairs.check_pairs(pairs.side_by_side(tmp_path))
    message = str(raised.value)
    assert message.startswith("3 of 4 pairs cannot be used: ") and "\n" not in message
    assert "odd.png has an odd width, 7" in message and "fine" not in message
    assert "text.jpg is unreadable" in message and "cut.jpg is unreadable" in message


def test_unpaired_and_unequal_files_are_named(tmp_path):
    for path, size in (("a/1", (4, 6)), ("a/2", (4, 6)), ("b/2", (4, 5)), ("b/3", (4, 6))):
        save(tmp_path / f"{path}.png", noise(*size))
    with pytest.raises(UserError, match=r"a/1\.png; unpaired, .*b/3\.png"):
        pairs.two_folders(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a/1.png").unlink()
    (tmp_path / "b/3.png").unlink()
    with pytest.raises(UserError, match=r"2\.png of 6 x 4 and .*2\.png of 5 x 4 differ"):
        pairs.check_pairs(pairs.two_folders(tmp_path / "a", tmp_path / "b"))
    with pytest.raises(UserError, match="a is given twice; give the folders of two kinds"):
        pairs.two_folders(tmp_path / "a", tmp_path / "b" / ".." / "a")


def test_folders_that_hold_no_images(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        pairs.side_by_side(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="no image there"):
        pairs.side_by_side(tmp_path)
    for ending in ("png", "jpg"):
        save(tmp_path / f"same.{ending}", noise(4, 8))
    with pytest.raises(UserError, match="two files each are named same"):
        pairs.side_by_side(tmp_path)


def test_long_lists_are_cut(tmp_path):
    for i in range(25):
        (tmp_path / f"{i:02}.png").write_text("")
    with pytest.raises(UserError, match=r"25 of 25 pairs .* and 5 more; fix"):
        pairs.check_pairs(pairs.side_by_side(tmp_path))
