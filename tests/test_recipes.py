from pathlib import Path

import pytest

import zoo
from zoo import recipes
from zoo.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_child_says_only_what_differs(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", "trainer: {max_epochs: 5, precision: 32}\nmodel: {lr: 0.1}")
    child = write(
        tmp_path / "child.yaml", "base: parent\ntrainer: {max_epochs: 1}\nabout: {trains: x}"
    )
    assert recipes.resolve(str(child)) == {
        "trainer": {"max_epochs": 1, "precision": 32},
        "model": {"lr": 0.1},
    }


def test_a_plus_appends() -> None:
    merged = recipes.merge({"callbacks": [1]}, {"callbacks+": [2]})
    assert merged == {"callbacks": [1, 2]}
    assert recipes.merge({}, {"callbacks+": 3}) == {"callbacks": [3]}


def test_a_circle_of_bases_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b")
    write(tmp_path / "b.yaml", "base: a")
    with pytest.raises(UserError, match="circle"):
        recipes.resolve(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "mapping"),
        ("model: {lr: 1", "not YAML"),
        ("base: [a, b]", "name of one recipe"),
        ("base: resnet_fmnits", "did you mean 'resnet_fmnist'"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(UserError, match=message) as error:
        recipes.resolve(str(path))
    assert "bad.yaml" in str(error.value)


GROWING = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)
)
MERGING = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GROWING, "nested too deeply or too long"),
        (MERGING, "nested too deeply or too long"),
        ("model: &m {a: *m}", "an alias stands within what it stands for"),
        ("model: &m [*m]", "an alias stands within what it stands for"),
        ("[" * 5000, "nested too deeply or too long"),
        ("trainer: {1: 2}", "trainer has 1 as a name"),
        ("trainer: 1.5", r"trainer is 1\.5, expected a mapping"),
        ("model: /etc/passwd", "model is '/etc/passwd', expected a mapping"),
        ("config: /etc/passwd", "config is an option of the command line"),
        ("recipe: resnet_digits", "recipe is an option of the command line"),
        ("model: {lr: .nan}", r"model\.lr is nan"),
        ("model: {lr: 1" + "0" * 30 + "}", r"model\.lr is 1"),
        ("data: {since: 2020-01-01}", "write it in quotes"),
        ("model: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_what_yaml_can_say_and_a_recipe_cannot_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(UserError, match=message) as error:
        recipes.read(path)
    assert "bad.yaml" in str(error.value)
    assert "root:" not in str(error.value)


def test_an_alias_stands_for_what_it_says(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "model: &m {a: [1, 2]}\ndata: *m\ntrainer: {<<: *m, b: 3}")
    same = {"a": [1, 2]}
    assert recipes.read(path) == {"model": same, "data": same, "trainer": {**same, "b": 3}}


def test_a_damaged_checkpoint_leaves_the_list_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = recipes.shipped_folder
    for name in ("resnet_fmnist", "vit_fmnist"):
        (tmp_path / name).mkdir()
        text = (shipped("checkpoints") / name / "config.json").read_text(encoding="utf-8")
        (tmp_path / name / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "resnet_fmnist" / "config.json").write_text("{")
    instead = {"checkpoints": tmp_path}
    monkeypatch.setattr(recipes, "shipped_folder", lambda name: instead.get(name) or shipped(name))
    with pytest.warns(UserWarning, match=r"left out: .*resnet_fmnist/config\.json: not JSON"):
        entries = {entry.name: entry for entry in recipes.entries()}
    assert entries["vit_fmnist"].weights
    assert not entries["resnet_fmnist"].weights


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"model: \xff")
    with pytest.raises(UserError, match="byte 7"):
        recipes.read(path)


def test_exponents_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "lr: 1e-4\nother: 2.5E3\nname: e4\nversion: '1e4'")
    assert recipes.read(path) == {"lr": 1e-4, "other": 2500.0, "name": "e4", "version": "1e4"}


def test_a_missing_file_says_so() -> None:
    with pytest.raises(UserError, match=r"no such file: nowhere/x\.yaml"):
        recipes.find("nowhere/x.yaml")


def test_what_a_longer_recipe_trained_stands_with_that_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = {
        "headline": "val/loss",
        "metrics": {"val/loss": 1.5},
        "parameters": 7,
        "run": {"recipe": "transformer_shakespeare_long"},
    }
    monkeypatch.setattr(recipes, "checkpoint_configs", lambda: {"transformer_shakespeare": card})
    entries = {entry.name: entry for entry in recipes.entries()}
    short, long = (entries[f"transformer_shakespeare{end}"] for end in ("", "_long"))
    assert (short.value, short.weights, short.trained_by) == (None, True, long.name)
    assert (long.value, long.weights, long.parameters) == (1.5, False, 7)
    assert {recipes.weights_of(entry.name) for entry in (short, long)} == {short.name}
    assert recipes.weights_of("resnet_digits") is None


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_begins_with_a_comment_and_says_what_it_trains(name: str) -> None:
    path = recipes.find(name)
    head = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert len(head) >= 3
    assert any(f"python -m zoo fit --recipe {name}" in line for line in head)
    if not name.startswith("study/"):  # what it trains, what it reaches, time and hardware, command
        assert head[3].startswith(f"#   python -m zoo fit --recipe {name}")
    entry = next(entry for entry in recipes.entries() if entry.name == name)
    assert entry.trains
    assert entry.data
    assert entry.parameters


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_states_its_true_number_of_parameters(name: str) -> None:
    from zoo import networks

    recipe = recipes.resolve(name)
    network = recipe["model"]["init_args"].get("network")
    if network is None:  # that of the weights it starts from
        built = zoo.load(recipe["init_from"]).network
    else:
        built = getattr(networks, network["class_path"].rsplit(".", 1)[-1])(**network["init_args"])
    entry = next(entry for entry in recipes.entries() if entry.name == name)
    assert sum(parameter.numel() for parameter in built.parameters()) == entry.parameters
