from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoo import recipes

BUILDER = """
from torch import nn


def build(rate=0.5):
    return nn.Sequential(nn.Dropout(rate), nn.Linear(8, 8), nn.BatchNorm1d(8))


whole = build(0.0)
number = 3
"""


# The study's recipes put dropout before BatchNorm on purpose: tests/study has them audited.
@pytest.mark.parametrize("name", [n for n in recipes.names() if not n.startswith("study/")])
def test_every_recipe_is_clean(zoo_cli, name) -> None:
    result = zoo_cli("audit", "--recipe", name, "--fail-on", "warning")
    assert result.code == 0, result.out
    seen = {"vit": "dropout", "unet": "dropout", "vit_small": "stochastic depth"}
    seen |= dict.fromkeys(("gpt", "transformer"), "no BatchNorm and no dropout")
    seen["transformer_shakespeare"] = "element-wise dropout, 6 attention dropout"  # the long one
    family = name.rsplit("_", 1)[0]
    assert seen.get(family, "BatchNorm") in result.out.splitlines()[0]


def test_a_users_file_and_module(zoo_cli, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").write_text(BUILDER)
    for spec in ("package/mine.py:build", "package.mine:build"):
        result = zoo_cli("audit", "--model", spec, "--input", "4,8")
        assert result.code == 1
        assert "dropout (rate 0.5) in 0 reaches BatchNorm 2 straight" in result.out
    again = ("audit", "--model", "package/mine.py:build", "--input", "4,8")
    assert zoo_cli(*again, "--args", '{"rate": 0.0}').code == 0
    assert zoo_cli(*again, "--fail-on", "never").code == 0
    assert zoo_cli("audit", "--model", "package/mine.py:whole", "--input", "4,8").code == 0


def test_timm_and_torchvision_json_and_sarif(zoo_cli, tmp_path: Path) -> None:
    options = ("--args", '{"drop_rate": 0.2}', "--input", "2,3,64,64", "--json")
    result = zoo_cli(
        "audit", "--model", "torchvision:densenet121", *options, "--sarif", "out/audit.sarif"
    )
    assert result.code == 0  # warnings only
    content = json.loads(result.out)
    rules = [finding["rule"] for finding in content["findings"]]
    assert rules.count("dropout-before-bn") == 58
    sarif = json.loads((tmp_path / "out" / "audit.sarif").read_text())
    assert len(sarif["runs"][0]["results"]) == len(content["findings"])
    result = zoo_cli("audit", "--model", "timm:resnet18", *options)
    assert json.loads(result.out)["findings"] == []


def test_a_picture_of_a_users_file_and_of_a_recipe(zoo_cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BUILDER)
    own = ("--model", "mine.py:build", "--input", "64,8")
    for arguments in (own, ("--recipe", "resnet_digits")):
        result = zoo_cli("audit", *arguments, "--picture", "out/audit.png", "--fail-on", "never")
        assert result.code == 0, result.err
        assert result.out.endswith("picture: out/audit.png\n")
        assert (tmp_path / "out" / "audit.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "out" / "audit.png").unlink()
    result = zoo_cli("audit", "--recipe", "gpt_shakespeare", "--picture", "none.png")
    assert result.code == 2
    assert "no BatchNorm" in result.err
    assert not (tmp_path / "none.png").exists()


def test_what_cannot_be_audited_has_an_exit_code_of_its_own(zoo_cli, tmp_path: Path) -> None:
    scripted = "from torch.jit import script as compiled\nfrom mine import build\n\n\n"
    scripted += "def script():\n    return compiled(build())\n"
    (tmp_path / "mine.py").write_text(BUILDER)
    (tmp_path / "opaque.py").write_text(scripted)
    for fail_on in ("error", "never"):
        result = zoo_cli(
            "audit", "--model", "opaque.py:script", "--input", "4,8", "--fail-on", fail_on
        )
        assert result.code == 2
        assert "not audited: " in result.out


def test_explain(zoo_cli) -> None:
    result = zoo_cli("audit", "--explain", "dropout-before-bn")
    assert result.code == 0
    assert "Li et al., CVPR 2019" in result.out
    everything = zoo_cli("audit", "--explain")
    assert len(everything.out.splitlines()) == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "audit needs a model: give --recipe NAME, or --model timm:resnet50"),
        (["--recipe", "resnet_fmnits"], "did you mean 'resnet_fmnist'"),
        (["--model", "resnet18"], "expected timm:NAME, torchvision:NAME or module:function"),
        (["--model", "timm:resnet19"], "timm has no model named 'resnet19'; did you mean"),
        (["--model", "torchvision:resnet19"], "torchvision has no model named 'resnet19'; did you"),
        (["--model", "timm:resnet18", "--args", "{drop_rate: 1}"], "--args: not JSON"),
        (["--model", "timm:resnet18", "--args", "[1]"], "expected a JSON object"),
        (["--model", "timm:resnet18", "--args", '{"drop_rat": 1}'], "--model timm:resnet18: "),
        (["--model", "timm:resnet18", "--input", "2,x"], "--input 2,x: expected sizes"),
        (["--model", "timm:resnet18", "--input", "2,4,8,8"], "does not run on these inputs"),
        (["--model", "nowhere.py:build"], "no such file: nowhere.py"),
        (["--model", "nowhere:build"], "No module named 'nowhere'"),
        (["--model", "mine.py:buidl"], "mine.py has no 'buidl'; did you mean 'build'?"),
        (["--model", "mine.py:build"], "the input of mine.py:build is not known: give its shape"),
        (["--model", "mine.py:number"], "--model mine.py:number"),
        (["--explain", "dropout"], "no rule named 'dropout'"),
        (["--fail-on", "info", "--jsn"], "did you mean '--json'"),
    ],
)
def test_bad_input_is_one_line(zoo_cli, tmp_path: Path, arguments, message) -> None:
    (tmp_path / "mine.py").write_text(BUILDER)
    result = zoo_cli("audit", *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert result.out == ""
