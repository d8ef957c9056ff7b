"""What README and docs show is run: links, tables, Python, recipes and commands.

Nothing is left out silently: a block that is not run stands in ``NOT_RUN`` with a reason.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import zoo
from tests.conftest import needs_data
from tests.photos import write_photos
from zoo.checkpoints.store import read_config
from zoo.core.options import Parser
from zoo.registry import COMMANDS, load

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
TEXT = {name: page.read_text(encoding="utf-8") for name, page in zip(NAMES, PAGES, strict=True)}

# How a command of bash begins, and why it is not run.
NOT_RUN = {
    "python3 -m venv .venv": "installs from the package index: .ci/run does it",
    "pip install -e .": "the same",
    "pip install -e '.[test]'": "the same",
    'pytest -m "not slow" -n 2': "this suite",
    ". .venv/bin/activate": "of the environment that is not made",
    "torchrun --nproc_per_node 4": "needs four GPUs; tests/cli/test_distributed.py has two CPUs",
    "python -m zoo fit --recipe resnet_fmnist --trainer.devices 4": "needs four GPUs",
    "python -m zoo study in-the-wild": "takes hours; tests/study/test_in_the_wild.py runs it",
    "python -m zoo verify resnet_fmnist --metrics": "minutes; tests/commands/test_verify.py has it",
}
# The same of whole blocks.
SCRIPTS = {
    "#!/bin/bash\n#SBATCH": "needs SLURM",
    "rates=$(printf": "an hour; the table above it is what it gives",
}
# Pages whose Python takes seconds; that of the others is marked slow.
QUICK = {"README.md", "docs/diagnostics.md", "docs/uncertainty.md", "docs/recipes.md"}
# Pages whose blocks are run elsewhere.
ELSEWHERE = {
    "docs/rules.md": "tests/diagnostics/test_rules.py runs both examples of each rule",
    "docs/study/in_the_wild_reports.md": "tests/study/test_in_the_wild.py runs the reports",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], flags=re.DOTALL)


def reason(line: str, known: dict[str, str] = NOT_RUN) -> str | None:
    return next((why for start, why in known.items() if line.startswith(start)), None)


def commands(page: str) -> list[str]:
    """The lines of its bash, one command each; comments and what follows ``&&`` apart."""
    lines = []
    for block in blocks(page, "bash"):
        if reason(block, SCRIPTS) is None:
            lines += [re.sub(r"(^|\s+)#.*", "", line) for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def of_zoo(page: str) -> list[list[str]]:
    """Arguments of its commands that are run."""
    found = [line for line in commands(page) if reason(line) is None]
    return [shlex.split(line)[3:] for line in found if line.startswith("python -m zoo ")]


WITH_PYTHON = [name for name in NAMES if blocks(name, "python") and name not in ELSEWHERE]
WITH_COMMANDS = [name for name in NAMES if of_zoo(name) and name not in ELSEWHERE]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


def anchors(name: str) -> set[str]:
    text = re.sub(r"```.*?```", "", TEXT[name], flags=re.DOTALL)
    count: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        base = slug(heading)
        found.add(base if not count[base] else f"{base}-{count[base]}")
        count[base] += 1
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_and_anchor_resolves(name) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", TEXT[name], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            other = file.resolve().relative_to(ROOT.resolve()).as_posix()
            assert anchor in anchors(other), f"{name} links to {target}"


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    navigation = re.sub(r"#.*", "", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    assert listed >= {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}


def test_generated_pages_and_tables_are_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, content in generate.pages().items():
        assert path.read_text(encoding="utf-8") == content, "python docs/generate.py writes them"
    tables = re.findall(r"<!-- table: (\w+) -->", TEXT["README.md"] + TEXT["docs/study/README.md"])
    assert sorted(tables) == sorted(generate.TABLES)


def test_the_readme_is_short_and_its_first_screen_shows_and_installs() -> None:
    lines = TEXT["README.md"].splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:30])
    assert "](docs/images/audit.png)" in first
    assert "pip install -e . && python -m zoo fit --recipe resnet_fmnist" in first
    assert len(blocks("README.md", "python")[0].splitlines()) == 5
    assert (ROOT / "docs/images/audit.png").stat().st_size < 100_000


def test_the_two_commands_are_what_ci_and_strangers_run() -> None:
    last = blocks("README.md", "bash")[-1]
    assert "pip install -e '.[test]' && pytest -m \"not slow\" -n 2" in last
    ci = (ROOT / ".ci/run").read_text()
    assert "pip install --quiet -e '.[test]'" in ci
    assert 'pytest -m "not slow" -n 2' in ci
    assert "mkdocs build --strict" in ci


def test_every_reason_is_still_of_a_command() -> None:
    lines = [line for name in NAMES for line in commands(name)]
    scripts = [block for name in NAMES for block in blocks(name, "bash")]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), start
    for start in SCRIPTS:
        assert any(block.startswith(start) for block in scripts), start
    # A language that no test knows would be left out silently.
    known = {"python", "bash", "yaml", "text", ""}
    for name in NAMES:
        assert set(re.findall(r"^```(\w*)", TEXT[name], flags=re.MULTILINE)) <= known, name


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_names_in_passing_exist(name) -> None:
    for command in re.findall(r"python -m zoo (\w+)", TEXT[name]):
        assert command in COMMANDS
    # Not zoo.PACKAGE, which any import of that module has set.
    for package, attribute in re.findall(r"`zoo\.([a-z_]+)\.(\w+)[`(]", TEXT[name]):
        assert hasattr(zoo.__getattr__(package), attribute), f"zoo.{package}.{attribute}"
    for attribute in re.findall(r"`zoo\.([A-Za-z_]+)[`(]", TEXT[name]):
        assert hasattr(zoo, attribute), f"zoo.{attribute}"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_every_command_is_read_and_is_run_or_has_a_reason(
    name, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in commands(name):
        if reason(line) is None:
            assert line.startswith("python -m zoo "), f"{name}: {line}"

    class Parsed(Exception):
        pass

    def parse(self: Parser, arguments: Any) -> None:
        super(Parser, self).parse_args(arguments)
        raise Parsed

    # Options of the commands that are not Lightning's are read here; the slow test runs them.
    monkeypatch.setattr(Parser, "parse_args", parse)
    for command, *arguments in of_zoo(name):
        if command in ("fit", "validate", "test") or "--recipe" in arguments[:1]:
            continue
        with pytest.raises(Parsed):
            load(COMMANDS[command].run)(arguments)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=[pytest.mark.slow, needs_data])
        for name in WITH_PYTHON
    ],
)
def test_python_runs(name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for command, *arguments in of_zoo(name):
        if "pixels.onnx" in arguments:  # the file that the Python of docs/export.md reads
            assert load(COMMANDS[command].run)(arguments) == 0
    scope: dict[str, Any] = {"__name__": "__main__"}
    for code in blocks(name, "python"):
        exec(compile(code, name, "exec"), scope)
    check = CHECKS.get(name)
    if check is not None:
        check(scope, capsys.readouterr().out)


def check_readme(scope: dict[str, Any], out: str) -> None:
    assert out.startswith("ResNet on 2×3×64×64: 20 BatchNorm")
    assert scope["logits"].shape == (1, 10)


def check_diagnostics(scope: dict[str, Any], out: str) -> None:
    tables = [line.split() for line in out.splitlines() if line[:2] == "4 "]
    (_, ratio, before, *_), (_, again, after, *_) = tables
    assert float(ratio) == pytest.approx(float(again), rel=0.05)
    assert float(ratio) > 1.5
    assert float(before) > 1.4
    assert float(after) == pytest.approx(1, abs=0.01)


def check_uncertainty(scope: dict[str, Any], out: str) -> None:
    assert "torch.Size([32, 10])" in out
    assert scope["calibration"].temperature == pytest.approx(2, rel=0.25)  # logits are halved


def check_recipes(scope: dict[str, Any], out: str) -> None:
    assert len(scope["data"].describe()["classes"]) == 3


def check_images(scope: dict[str, Any], out: str) -> None:
    assert scope["images"].shape == (4, 3, 16, 16)
    assert "20 images of 2 classes" in out


def check_fine_tuning(scope: dict[str, Any], out: str) -> None:
    assert scope["fine_tuned"] > scope["from_scratch"] + 0.15
    assert scope["probe"].accuracy > 0.8


def check_generation(scope: dict[str, Any], out: str) -> None:
    assert scope["images"].shape == (2, 1, 28, 28)
    assert 0 <= scope["images"].min() < 0.1
    assert 0.5 < scope["images"].max() <= 1
    (text,) = blocks("docs/generation.md", "text")
    assert out.startswith(text.strip()[:40])


def check_export(scope: dict[str, Any], out: str) -> None:
    assert scope["probabilities"].shape == (1, 10)
    assert scope["probabilities"].sum() == pytest.approx(1, abs=1e-4)


CHECKS = {
    "README.md": check_readme,
    "docs/diagnostics.md": check_diagnostics,
    "docs/uncertainty.md": check_uncertainty,
    "docs/recipes.md": check_recipes,
    "docs/images.md": check_images,
    "docs/fine-tuning.md": check_fine_tuning,
    "docs/generation.md": check_generation,
    "docs/export.md": check_export,
}


def test_the_text_is_the_cards() -> None:
    text = read_config(ROOT / "checkpoints/transformer_shakespeare")["text"]
    assert text["made"].startswith(text["prompt"])
    assert text["made"] + "\n" in blocks("docs/generation.md", "text")


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_every_command_works_in_the_order_it_is_shown(name, zoo_cli) -> None:
    for folder in ("photos", "new_photos"):
        write_photos(Path(folder), each=10, side=32)
    for arguments in of_zoo(name):
        if arguments[0] == "fit":  # what takes minutes is shortened, nothing else
            limit = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
            arguments = [*arguments, *limit, "--trainer.limit_test_batches", "1"]
            if "--trainer.max_epochs" not in arguments:
                arguments += ["--trainer.max_epochs", "3" if "--ckpt_path" in arguments else "2"]
        if arguments[0] == "uncertainty" and "--images" not in arguments:
            arguments = [*arguments, "--images", "200"]
        result = zoo_cli(*arguments)
        assert result.code == 0, (arguments, result.err)


@pytest.mark.slow
def test_the_audit_that_the_readme_shows_is_what_it_prints(zoo_cli) -> None:
    (shown,) = [block for block in blocks("README.md", "text") if block.startswith("$ ")]
    command, *lines = shown.strip().splitlines()
    out = zoo_cli(*shlex.split(command)[4:]).out.splitlines()
    assert [line for line in lines if line.strip() != "…"] == out[: len(lines) - 1]


def test_the_recipe_runs(zoo_cli) -> None:
    (recipe,) = blocks("docs/recipes.md", "yaml")
    Path("mine.yaml").write_text(recipe)
    result = zoo_cli("fit", "--recipe", "mine.yaml", "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
