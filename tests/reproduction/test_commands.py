"""What the commands of reproduction share: help, and how mistakes end them."""

import pytest

from reproduction.__main__ import MODULES, main


@pytest.mark.parametrize("name", MODULES)
def test_the_help_of_a_command_is_one_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("\n") <= 45


def test_a_file_in_place_of_the_folder_of_runs_ends_in_one_line(tmp_path, capsys):
    pytest.importorskip("tqdm", reason="runs need tqdm")
    (tmp_path / "file").touch()
    words = "run", "en-5", "--num-gpus", "0", "--work-dir", str(tmp_path / "file")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written to" in line
    assert str(tmp_path / "file") in line
