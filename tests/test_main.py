import subprocess
import sys

import pytest

from zoo.registry import COMMANDS


def test_help_names_every_command(zoo_cli) -> None:
    result = zoo_cli("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert f"  {command} " in result.out


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"], []])
def test_help_and_list_import_neither_torch_nor_lightning(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom zoo.__main__ import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'lightning', 'timm', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_misspelt_command_proposes_the_nearest(zoo_cli) -> None:
    result = zoo_cli("ft", "--recipe", "resnet_digits")
    assert result.code == 2
    assert "no command named 'ft'; did you mean 'fit'?" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_an_unwritable_folder_is_one_line(zoo_cli, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = zoo_cli("fit", "--recipe", "resnet_digits", "--runs", str(tmp_path / "file"))
    assert result.code == 2
    assert "file" in result.err.strip().splitlines()[-1]
    assert "Traceback" not in result.err


def test_a_stop_while_a_command_starts_is_one_line(zoo_cli, monkeypatch) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.registry.load", stop)
    try:
        result = zoo_cli("audit", "model.py")
    except KeyboardInterrupt:  # would end the whole suite, where one test is at fault
        pytest.fail("it was not caught")
    assert (result.code, result.err.strip()) == (130, "zoo audit: stopped")
