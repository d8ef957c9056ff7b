from __future__ import annotations

import pytest

from zoo.core.renamed import renamed_network, renamed_recipe, renamed_task


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"name": "ViT", "args": {"dim": 8, "heads": 2, "pool": "avg", "embed_drop_rate": 0.1}},
            {
                "name": "ViT",
                "args": {
                    "embed_dim": 8,
                    "num_heads": 2,
                    "global_pool": "avg",
                    "pos_drop_rate": 0.1,
                },
            },
        ),
        (
            {"name": "Transformer", "args": {"dim": 8, "kv_heads": 1, "embed_drop_rate": 0.1}},
            {
                "name": "Transformer",
                "args": {"embed_dim": 8, "num_kv_heads": 1, "embed_drop_rate": 0.1},
            },
        ),
        (
            {"name": "GAN", "args": {"latent_size": 4}},
            {"name": "SNGAN", "args": {"latent_size": 4}},
        ),
        (
            {"name": "SNGAN", "args": {"detail_scale": 0.0, "blocks": 1}},
            {"name": "SNGAN", "args": {"blocks": 1}},
        ),
        (
            {"name": "SNGAN", "args": {"detail_scale": 2.0}},
            {"name": "SNGAN", "args": {"detail_scale": 2.0}},
        ),
        ({"name": "LSTM", "args": {"dim": 8}}, {"name": "LSTM", "args": {"dim": 8}}),
        ({"name": "ResNet", "args": "?"}, {"name": "ResNet", "args": "?"}),
    ],
    ids=["vit", "transformer", "gan", "removed", "gone-for-good", "untouched", "malformed"],
)
def test_a_network_of_an_earlier_file_has_its_present_names(old: dict, new: dict) -> None:
    assert renamed_network(old) == new
    assert renamed_network(new) == new  # once more changes nothing


def test_a_recipe_is_renamed_at_every_depth_and_nothing_else_is() -> None:
    network = {"class_path": "zoo.networks.ViT", "init_args": {"dim": 8, "depth": 1}}
    recipe = {
        "model": {"class_path": "zoo.tasks.GAN", "init_args": {"network": network, "heads": 3}},
        "trainer": {"callbacks": [{"class_path": "zoo.networks.gan.GAN"}], "max_epochs": 1},
        "data": {"class_path": "mine.ViT", "init_args": {"dim": 2}},
    }
    renamed = renamed_recipe(recipe)
    assert renamed["model"] == {
        "class_path": "zoo.tasks.GAN",
        "init_args": {
            "network": {
                "class_path": "zoo.networks.ViT",
                "init_args": {"embed_dim": 8, "depth": 1},
            },
            "heads": 3,
        },
    }
    assert renamed["trainer"]["callbacks"] == [{"class_path": "zoo.networks.SNGAN"}]
    assert renamed["data"] == recipe["data"]
    assert network["init_args"] == {"dim": 8, "depth": 1}  # the file's own content stays


OLD_GAN = {
    "lr": 0.1,
    "discriminator_lr": 0.2,
    "discriminator_steps": 2,
    "loss": "hinge",
    "optimizer_args": {"eps": 1e-6},
    "momentum": 0.5,
    "cuda_graph": True,
    "shift": 1,
}
NEW_GAN = {
    "lr": [0.1, 0.2],
    "optimizer_args": {"momentum": 0.5, "eps": 1e-6},
    "record": "auto",
    "shift": 1,
}


def test_a_gan_of_an_earlier_file_has_its_present_arguments() -> None:
    assert renamed_task("GAN", OLD_GAN) == NEW_GAN
    assert renamed_task("GAN", {"cuda_graph": False, "discriminator_lr": None, "lr": 0.1}) == {
        "record": False,
        "lr": 0.1,
    }
    assert renamed_task("ImageClassifier", OLD_GAN) == OLD_GAN


def test_a_recipe_that_asks_for_what_went_keeps_it_and_is_refused() -> None:
    content = {"model": {"class_path": "zoo.tasks.GAN", "init_args": OLD_GAN}}
    expected = {"class_path": "zoo.tasks.GAN", "init_args": {**NEW_GAN, "discriminator_steps": 2}}
    assert renamed_recipe(content)["model"] == expected
