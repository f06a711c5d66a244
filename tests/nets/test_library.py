from __future__ import annotations

import pytest
import timm

from ssl_ray.errors import ConfigError
from ssl_ray.nets import build_net
from ssl_ray.nets.library import classifier_weight, published_view, require_timm, view_line, warn_of_view
from ssl_ray.settings.nets import NetConfig
from ssl_ray.settings.views import Preprocess
from ssl_ray.stages.train import same_architecture


def test_a_tag_of_timm_chooses_mean_and_std() -> None:
    by_tag = {tag: published_view(f"timm:tf_efficientnet_b0.{tag}")["mean"] for tag in ("ap_in1k", "ns_jft_in1k")}
    assert by_tag == {"ap_in1k": (0.5, 0.5, 0.5), "ns_jft_in1k": (0.485, 0.456, 0.406)}


def test_a_net_with_a_tag_is_the_net_without() -> None:
    tagged, plain = (build_net(NetConfig(name=f"timm:{name}"), 2) for name in ("resnet10t.c3_in1k", "resnet10t"))
    assert [p.shape for p in tagged.parameters()] == [p.shape for p in plain.parameters()]
    assert same_architecture("timm:resnet10t.c3_in1k", "timm:resnet10t")
    assert not same_architecture("timm:resnet10t", "timm:resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tf_efficientnet_b0.none", r"no weights 'none' of tf_efficientnet_b0; the tags are .*ap_in1k.*ns_jft_in1k"),
        ("tf_efficientnet_b0.", r"the tags are aa_in1k"),
        ("tf_efficientnet_b00.ap_in1k", r"no net 'tf_efficientnet_b00'; the nearest are tf_efficientnet_b0"),
        ("ResNet50", r"the nearest are resnet50"),
        ("hf-hub:timm/resnet50.a1_in1k", "network"),
        ("timm/resnet50", "network"),
        ("test_vit.", "tags are"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused_with_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_timm(name)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "deeplabv3_resnet50", "quantized_resnet50", "raft_small", "r3d_18"])
def test_a_net_of_torchvision_that_is_no_classifier_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    with pytest.raises(ConfigError, match="no classification net"):
        build_net(NetConfig(name=f"torchvision:{name}"), 2)


@pytest.mark.parametrize("name", ["timm:resnet10t.c3_in1k", "torchvision:resnet18"])
def test_the_classifier_of_a_file_is_found_by_its_name(name: str) -> None:
    net = timm.create_model("resnet10t")
    assert classifier_weight(name, net.state_dict()) == "fc.weight"
    with pytest.raises(ConfigError, match=r"hold no fc\.weight"):
        classifier_weight(name, {"fc.weight": net.fc.bias})


def test_size_mean_and_std_are_one_line() -> None:
    assert view_line(Preprocess(size=32, std=(0.25, 0.5, 1))) == "32 pixels, mean 0.5, 0.5, 0.5, std 0.25, 0.5, 1"


@pytest.mark.parametrize(
    ("name", "warns"), [("timm:resnet10t", True), ("timm:tf_efficientnet_b0.ap_in1k", False), ("resnet:50", False)]
)
def test_pixels_that_published_weights_do_not_expect_are_noted(
    name: str, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_view(name, Preprocess())
    assert ("preprocess.mean" in capsys.readouterr().out) == warns
