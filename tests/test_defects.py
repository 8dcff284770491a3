"""The defects that tests/defects.py makes can be made in the files as they are now."""

import ast

import pytest

from defects import DEFECTS, first_failure


def test_each_has_a_name_and_a_text_of_its_own():
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)
    assert len({(defect.file, defect.old) for defect in DEFECTS}) == len(DEFECTS)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_can_be_made(defect, root, tmp_path):
    copy = tmp_path / defect.file
    copy.parent.mkdir(parents=True)
    copy.write_bytes((root / defect.file).read_bytes())
    defect.apply(tmp_path)
    assert copy.read_bytes() != (root / defect.file).read_bytes()
    if copy.suffix == ".py":
        ast.parse(copy.read_text(encoding="utf-8"))
    for test in defect.tests.split():
        path, _, name = test.partition("::")
        assert f"def {name}" in (root / path).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"occurs [02-9] times in .*express the defect anew"):
        defect.apply(tmp_path)


@pytest.mark.wide
def test_the_first_failure_is_named(tmp_path):
    tests = "def test_fine(): pass\ndef test_bad(): assert 0, 'a - b'\ndef test_worse(): assert 0\n"
    (tmp_path / "test_a.py").write_text(tests)
    assert first_failure(tmp_path, ["test_a.py"]) == "test_a.py::test_bad"
    assert first_failure(tmp_path, ["test_a.py::test_fine"]) is None
    with pytest.raises(RuntimeError, match=r"test_b\.py ends with 4"):
        first_failure(tmp_path, ["test_b.py"])
