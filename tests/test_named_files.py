from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.grids import identity
from ssl_ray.named_files import hash_of, hashes_of, inputs_of
from ssl_ray.recipes.arms import InitConfig
from ssl_ray.settings.nets import NetConfig


class Nested(Config):
    net: NetConfig = NetConfig()
    nets: tuple[NetConfig, ...] = ()
    inits: dict[str, InitConfig] = Field(default_factory=dict)


def settings(path: Path) -> Nested:
    net = NetConfig(weights=str(path))
    return Nested(net=net, nets=(NetConfig(), net), inits={"a": InitConfig(weights=str(path))})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "w.pth").write_bytes(b"first")
    return tmp_path / "w.pth"


def test_files_are_found_wherever_settings_name_them(weights: Path) -> None:
    same = hash_of(str(weights))
    assert hashes_of(settings(weights)) == {"net.weights": same, "nets.1.weights": same, "inits.a.weights": same}
    assert hashes_of(Nested()) == {}


def test_a_changed_file_of_the_same_size_has_another_hash(weights: Path) -> None:
    before = hash_of(str(weights))
    weights.write_bytes(b"other")
    assert hash_of(str(weights)) != before


def test_a_missing_file_is_named_with_its_setting(weights: Path) -> None:
    config = settings(weights)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"there is no weights file .*w\.pth; correct net\.weights"):
        inputs_of(config, lambda: None, required=True)


def test_a_file_that_is_gone_counts_as_the_one_that_was_read(weights: Path) -> None:
    config = Nested(net=NetConfig(weights=str(weights)))
    before = inputs_of(config, lambda: None, required=True)
    weights.unlink()
    assert inputs_of(config, lambda: {"inputs": before}, required=True) == before


def test_a_trial_of_a_sweep_is_another_one_with_another_file(weights: Path) -> None:
    before = identity("noisy-student", settings(weights), 0)
    weights.write_bytes(b"other")
    assert identity("noisy-student", settings(weights), 0) != before
