"""configs/metafile.yml, which lists the papers' configs for OpenMMLab's tools."""

import yaml

from reproduction.pages import metafile
from reproduction.papers import published


def test_openmmlabs_tools_list_the_papers_configs(root):
    """tests/test_docs.py compares the file with what reproduction.write_pages writes."""
    listed = yaml.safe_load((root / "configs" / "metafile.yml").read_text())
    collections = {one["Name"]: one["Paper"] for one in listed["Collections"]}
    for model, cell in zip(listed["Models"], metafile.models(), strict=True):
        (result,), paper = (
            model["Results"],
            published.papers()[published.tables()[cell.table].paper],
        )
        assert model["Config"] == cell.config
        assert collections[model["In Collection"]] == {"Title": paper.title, "URL": paper.url}
        assert {*result["Metrics"].values()} <= {*cell.paper}
