from zoo.checkpoints import store


def test_every_shipped_checkpoint_is_verified(zoo_cli) -> None:
    result = zoo_cli("verify")
    assert result.code == 0, result.err
    assert len(result.out.strip().splitlines()) == len(store.names())
    assert "checksums match" in result.out


def test_an_unknown_checkpoint_is_reported(zoo_cli) -> None:
    result = zoo_cli("verify", "resnet_fmnits")
    assert result.code == 2
    assert "did you mean 'resnet_fmnist'?" in result.err
