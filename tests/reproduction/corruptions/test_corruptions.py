"""The corruptions of the evidence: the property that defines each."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs OpenCV: make install-openmmlab")

from reproduction.corruptions.corruptions import CORRUPTIONS, corrupt

RNG = np.random.default_rng(0)
PHOTO = np.clip(RNG.normal(120, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
GRAY = np.full((32, 32, 3), 128, np.uint8)
POINT = np.zeros((32, 32, 3), np.uint8)
POINT[16, 16] = 255


def many(name, image, count=40):
    return np.stack([corrupt(image, name, index) for index in range(count)]) / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_has_the_same_corruption_in_each_test_and_keeps_its_form(name):
    before = PHOTO.copy()
    found = corrupt(PHOTO, name, 7)
    assert np.array_equal(found, corrupt(PHOTO, name, 7))
    assert (found.shape, found.dtype) == (PHOTO.shape, np.uint8)
    assert np.array_equal(PHOTO, before)
    assert not np.array_equal(found, PHOTO)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "fog", "motion_blur", "elastic"])
def test_two_images_have_other_draws(name):
    image = POINT if name == "motion_blur" else PHOTO
    assert not np.array_equal(corrupt(image, name, 0), corrupt(image, name, 1))


def test_gaussian_noise_has_a_deviation_of_8_percent():
    assert many("gaussian_noise", GRAY).std() == pytest.approx(0.08, rel=0.02)


def test_shot_noise_has_the_variance_of_100_photons():
    found = many("shot_noise", GRAY)
    assert found.mean() == pytest.approx(128 / 255, rel=0.01)
    assert found.var() == pytest.approx(128 / 255 / 100, rel=0.03)


@pytest.mark.parametrize("value", [0, 1])
def test_impulse_noise_sets_three_percent_of_the_values_half_each(value):
    assert (many("impulse_noise", GRAY) == value).mean() == pytest.approx(0.015, rel=0.1)


def test_defocus_blur_spreads_a_point_over_its_neighbours_by_a_gaussian():
    found = corrupt(POINT, "defocus_blur", 0)[..., 0] / 255
    kernel = np.exp(-(np.arange(-1, 2) ** 2) / (2 * 0.6**2))
    expected = np.outer(kernel, kernel) / kernel.sum() ** 2
    assert found[15:18, 15:18] == pytest.approx(expected, abs=1 / 255)
    assert found.sum() == pytest.approx(found[15:18, 15:18].sum())


def test_glass_blur_moves_a_pixel_by_at_most_a_row_and_a_column():
    places = set()
    for index in range(40):
        found = corrupt(POINT, "glass_blur", index)[..., 0]
        places |= {*map(tuple, np.argwhere(found > 128))}
    assert places == {(16, 16), (16, 17), (17, 16), (17, 17)}


def test_motion_blur_draws_a_point_out_on_one_side_within_45_degrees():
    for index in range(8):
        found = corrupt(POINT, "motion_blur", index)[..., 0]
        rows, columns = np.nonzero(found)
        assert found[16, 16] == found.max()
        assert {*np.sign(columns - 16)} <= {-1, 0}
        assert (abs(rows - 16) <= abs(columns - 16)).all()
        assert len(rows) > 4


def test_zoom_blur_keeps_the_middle_and_draws_the_edge_out_by_at_most_15_percent():
    ring = np.zeros((32, 32, 3), np.uint8)
    ring[:, 24:] = 255
    found = corrupt(ring, "zoom_blur", 0)[16, :, 0] / 255
    assert found[:24].max() <= 2 / 17 + 1 / 255
    assert (np.diff(found[24:28]) >= 0).all() and found[27] == 1
    assert found[24] < 0.9


def test_snow_brightens_and_adds_white_streaks():
    found = many("snow", np.zeros_like(GRAY))
    assert found.min() == pytest.approx(0.05, abs=1 / 255)  # .1 of 1.5 * 0 + .5
    assert found.max() > 0.3
    flakes = found[0] - found.min()
    assert flakes == pytest.approx(np.rot90(flakes, 2), abs=1 / 255)


def test_fog_keeps_the_largest_value_as_a_bound_and_lifts_the_darkest():
    dark = GRAY.copy()
    dark[:16] = 0
    found = many("fog", dark)
    assert found.max() <= 128 / 255 + 1 / 255
    assert found[:, :16].mean() > 0.05
    shares = found[:, 16:].min() * 255 / 128
    assert shares == pytest.approx(128 / (128 + 0.75 * 255), rel=0.05)  # without haze


def test_fog_is_smooth():
    """Neighbours are alike, where noise's would differ as much as pixels far apart."""
    found = many("fog", GRAY)[..., 0]
    near = abs(np.diff(found, axis=1)).mean()
    far = abs(found[:, :16] - found[:, 16:]).mean()
    assert near < far / 4


def test_brightness_adds_15_percent_to_the_largest_channel_and_keeps_hue_and_saturation():
    image = np.full((32, 32, 3), (50, 100, 25), np.uint8)
    found = corrupt(image, "brightness", 0)[0, 0] / 255
    assert found == pytest.approx(np.array([0.5, 1, 0.25]) * (100 / 255 + 0.15), abs=1 / 255)
    assert corrupt(np.zeros_like(GRAY), "brightness", 0).max() == 38


def test_contrast_shrinks_each_channels_deviations_to_two_fifths():
    found = corrupt(PHOTO, "contrast", 0).astype(float)
    assert found.std(axis=(0, 1)) == pytest.approx(0.4 * PHOTO.std(axis=(0, 1)), rel=0.01)
    assert found.mean(axis=(0, 1)) == pytest.approx(PHOTO.mean(axis=(0, 1)), abs=0.5)


def test_elastic_moves_a_point_by_a_few_pixels_only():
    square = np.zeros_like(GRAY)
    square[14:18, 14:18] = 255
    for index in range(20):
        weights = corrupt(square, "elastic", index)[..., 0]
        center = [np.average(places, weights=weights) for places in np.indices(weights.shape)]
        assert np.abs(np.array(center) - 15.5).max() < 4


def test_pixelate_leaves_27_rows_and_columns():
    found = corrupt(PHOTO, "pixelate", 0)
    for axis in (0, 1):
        others = np.any(np.diff(found.astype(int), axis=axis), axis=(1 - axis, 2))
        assert others.sum() == 26
    assert found.mean() == pytest.approx(PHOTO.mean(), abs=1)


def test_jpeg_loses_detail_and_keeps_a_plain_area():
    assert corrupt(GRAY, "jpeg", 0) == pytest.approx(128, abs=1)
    found = corrupt(PHOTO, "jpeg", 0).astype(float)
    assert 5 < abs(found - PHOTO).mean() < 40
