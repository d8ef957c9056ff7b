"""An architecture's file reads like its paper: what is there for speed stands in other files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from zoo import networks

FOLDER = Path(networks.__file__).parent
ARCHITECTURES = (
    "convnet densenet efficientnet lstm preact_resnet resnet sngan transformer unet vit".split()
)
SHARED = {"base", "fast", "initializers", "layers"}
SPEED = ("device.type", "is_contiguous", "memory_format", "is_grad_enabled", "autograd.Function")


def test_every_network_of_the_registry_has_such_a_file() -> None:
    files = {build.__module__.rpartition(".")[2] for build in networks.REGISTRY.values()}
    assert files == {*ARCHITECTURES, "timm_network"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_in_it_is_there_for_speed(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    assert not [word for word in SPEED if word in source]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_imports_what_all_share_and_no_other_architecture(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    ours = {module for module in modules if module.startswith("zoo")}
    assert ours <= {f"zoo.networks.{shared}" for shared in SHARED}
