"""The picture of predictions beside the ground truth."""

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from ilm_plugins.frameworks.detectron2.picture import spread


@pytest.mark.parametrize("number", [1, 3, 6, 7, 12])
def test_no_image_is_drawn_twice(number):
    found = spread(list(range(number)))
    assert found == sorted(set(found)) and len(found) == min(6, number)
