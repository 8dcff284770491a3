"""The package's configs as paths for detectron2."""

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.detectron2.config_files import read_config

NAME = "ilm_plugins://mask_rcnn_R_50_FPN_batch2_ilmgn.yaml"


def merged(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


@pytest.mark.parametrize("read", [merged, read_config])
def test_a_config_derives_from_one_of_ours(read, root, tmp_path):
    expected = merged(root / "configs" / "detectron2" / "mask_rcnn_R_50_FPN_batch2_ilmgn.yaml")
    assert read(NAME) == expected  # it has bases beside it
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {NAME}\nSEED: 7\n")
    expected.SEED = 7
    assert read(str(tmp_path / "mine.yaml")) == expected


def test_the_path_manager_reads_our_configs(root):
    path = root / "configs" / "detectron2" / "mask_rcnn_R_50_FPN_batch2_ilmgn.yaml"
    with PathManager.open(NAME) as file:
        assert file.read() == path.read_text()
    assert path.samefile(PathManager.get_local_path(NAME))


@pytest.mark.parametrize("read", [merged, read_config])
def test_a_missing_base_is_one_line(read, tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: ilm_plugins://none.yaml\n")
    with pytest.raises(UserError, match=r"has no config 'none\.yaml'; near ones are "):
        read(str(tmp_path / "mine.yaml"))
