from __future__ import annotations

from zoo.checkpoints.store import folder_of, read_config


def test_shipped_weights_go_on_with_a_prompt_by_either_recipes_name(zoo_cli) -> None:
    text = read_config(folder_of("transformer_shakespeare"))["text"]
    for recipe in ("transformer_shakespeare", "transformer_shakespeare_long"):
        arguments = ["--recipe", recipe, "--prompt", text["prompt"], "--seed", "0"]
        result = zoo_cli("sample", *arguments, "--max_new_tokens", "60")
        assert result.code == 0, result.err
        assert result.out.rstrip("\n") == text["made"][: len(text["prompt"]) + 60].rstrip("\n")


def test_what_makes_nothing_or_has_no_weights_is_reported(zoo_cli) -> None:
    for recipe, message in (
        ("resnet_fmnist", "resnet_fmnist: ImageClassifier cannot generate samples"),
        ("gan_digits", "recipe 'gan_digits' ships no weights: give --ckpt_path FILE"),
    ):
        result = zoo_cli("sample", "--recipe", recipe)
        assert result.code == 2
        assert message in result.err
