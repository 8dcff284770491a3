"""The package's configs by name, and the list of them for OpenMMLab's tools."""

from pathlib import Path

import pytest
import yaml

import ilm_plugins
from ilm_plugins import configs
from ilm_plugins.errors import UserError

ILMGN = "mask_rcnn_R_50_FPN_batch2_ilmgn.yaml"


def test_configs_are_found_by_name(root):
    folder = root / "configs"
    named = {
        ILMGN: folder / "detectron2" / ILMGN,
        f"detectron2/{ILMGN}": folder / "detectron2" / ILMGN,
        "mmseg/fcn_r50-d8_ade20k_en.py": folder / "mmseg/fcn_r50-d8_ade20k_en.py",
    }
    for name, path in named.items():
        assert Path(ilm_plugins.get_config_file(name)).samefile(path)
        assert Path(configs.resolve(f"ilm_plugins://{name}")).samefile(path)
        # As fvcore takes a base for one beside the file that names it.
        assert Path(configs.resolve(f"/mine/ilm_plugins://{name}")).samefile(path)
    assert configs.resolve("/mine/a.yaml") == "/mine/a.yaml"


def test_a_missing_config_is_one_line_with_near_names():
    name = "fcn_r50-d8_ade20k_en.py"
    with pytest.raises(UserError, match=f"no config '{name}'; near ones are .*mmseg/{name}"):
        ilm_plugins.get_config_file(name)


@pytest.fixture
def listed(root):
    """The contents of the metafile, with the fields of Model Index, which MIM and others read."""
    return yaml.safe_load((root / "ilm_plugins" / ".mim" / "configs" / "metafile.yml").read_text())


def test_the_model_index_names_the_metafile(root):
    index = yaml.safe_load((root / "ilm_plugins" / ".mim" / "model-index.yml").read_text())
    assert index == {"Import": ["configs/metafile.yml"]}


def test_openmmlabs_tools_get_each_model_by_a_name_of_its_own(listed):
    names = [model["Name"] for model in listed["Models"]]
    assert sorted(names) == sorted(set(names))
