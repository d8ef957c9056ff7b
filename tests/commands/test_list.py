import json

from zoo import recipes


def test_the_table_has_a_line_for_every_recipe(zoo_cli) -> None:
    lines = zoo_cli("list").out.splitlines()
    assert lines[0].split() == ["RECIPE", "TRAINS", "DATA", "PARAMETERS", "MEASURED", "WEIGHTS"]
    assert [line.split()[0] for line in lines[1:]] == recipes.names()


def test_json_is_for_scripts(zoo_cli) -> None:
    entries = json.loads(zoo_cli("list", "--json").out)
    assert [entry["name"] for entry in entries] == recipes.names()
    fashion = next(entry for entry in entries if entry["name"] == "resnet_fmnist")
    assert fashion["weights"] is True
    assert fashion["data"] == "FashionMNIST"
    assert fashion["metric"] == "test/accuracy"
    assert 0.9 < fashion["value"] < 1
    assert isinstance(fashion["parameters"], int)


def test_an_unknown_option_is_refused(zoo_cli) -> None:
    assert zoo_cli("list", "--jsno").code == 2
