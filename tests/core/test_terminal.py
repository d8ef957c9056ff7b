import sys
import warnings

import pytest

from zoo.core.terminal import plain_warnings, say_loading


def test_a_terminal_is_told_what_takes_time_and_a_log_file_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    say_loading("info")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say_loading("info")
    assert capsys.readouterr() == ("", "zoo info: loading PyTorch …\n")
    monkeypatch.setitem(sys.modules, "torch", sys)
    say_loading("info")
    assert capsys.readouterr().err == ""


def test_a_warning_is_one_line_without_its_source() -> None:
    with plain_warnings():
        text = warnings.formatwarning("half of the data is missing", UserWarning, "file.py", 3)
    assert text == "warning: half of the data is missing\n"
    assert "file.py" in warnings.formatwarning("again", UserWarning, "file.py", 3)
