import subprocess
import sys

import pytest

import zoo


def test_importing_zoo_imports_no_torch() -> None:
    code = "import sys, zoo; sys.exit('torch' in sys.modules or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", zoo.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(zoo, name) is not None
    assert name in dir(zoo)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = zoo.laod  # type: ignore[attr-defined]
