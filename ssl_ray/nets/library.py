"""Backbones from timm and torchvision by name, without their classifiers; the noise modules are replaced by ours.

Both libraries take seconds to import, so they are imported where a net of theirs is built.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.nets.noise import NoiseSource, adopt
from ssl_ray.settings.views import Preprocess


def timm_backbone(name: str, stochastic_depth: float, source: NoiseSource, small_image: bool) -> tuple[nn.Module, int]:
    """A timm net that returns pooled features, and how many."""
    import timm

    require_timm(name)
    options: dict[str, Any] = {"drop_path_rate": stochastic_depth} if stochastic_depth else {}
    try:
        net = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except TypeError:
        raise ConfigError(f"timm:{name} has no stochastic depth; set net.stochastic_depth=0") from None
    if small_image:
        _keep_resolution(net, name)
    adopt(net, source)
    return net, int(getattr(net, "head_hidden_size", net.num_features))


def torchvision_backbone(name: str, stochastic_depth: float, source: NoiseSource) -> tuple[nn.Module, int]:
    """A torchvision classifier whose last linear layer is taken off, and the width of what entered it."""
    from torchvision import models

    require_torchvision(name)
    options: dict[str, Any] = {"stochastic_depth_prob": stochastic_depth} if stochastic_depth else {}
    try:
        net = models.get_model(name, weights=None, **options)
    except (TypeError, ValueError):
        raise ConfigError(f"torchvision:{name} has no stochastic depth; set net.stochastic_depth=0") from None
    *parent, leaf = _last_linear(net, name).split(".")
    holder = net.get_submodule(".".join(parent))
    features = int(getattr(holder, leaf).in_features)
    setattr(holder, leaf, nn.Identity())
    # The dropout in front of the classifier is ours to place, once.
    if isinstance(holder, nn.Sequential) and leaf.isdigit() and int(leaf) and isinstance(holder[int(leaf) - 1], nn.Dropout):
        holder[int(leaf) - 1] = nn.Identity()
    adopt(net, source)
    return net, features


def library_classifier(name: str, num_classes: int) -> nn.Module:
    """A whole classifier of timm or torchvision, with fresh weights."""
    family, _, model = name.partition(":")
    if family == "timm":
        import timm

        require_timm(model)
        net: nn.Module = timm.create_model(model, pretrained=False, num_classes=num_classes)
        return net
    from torchvision import models

    require_torchvision(model)
    extra = (
        {"init_weights": False, "aux_logits": False, "transform_input": True} if model in ("googlenet", "inception_v3") else {}
    )
    built: nn.Module = models.get_model(model, weights=None, num_classes=num_classes, **extra)
    return built


def classifier_weight(name: str, weights: dict[str, torch.Tensor]) -> str:
    """The tensor in a file of weights whose rows are the classes.

    Raises:
        ConfigError: it is not in the file.
    """
    family, _, model = name.partition(":")
    if family == "timm":
        layers = _published(model).get("classifier") or "classifier"
        layer = layers if isinstance(layers, str) else layers[0]
    else:
        with torch.device("meta"):  # for the names alone
            layer = _last_linear(library_classifier(name, 1000), model)
    key = f"{layer}.weight"
    if key not in weights or weights[key].dim() < 2:
        raise ConfigError(f"the weights hold no {key}, the classifier of {name}; give the file of the whole classifier")
    return key


def published_view(name: str) -> dict[str, Any]:
    """Size, crop, mean and std that the library's own weights of a net were trained for, as settings of `Preprocess`."""
    family, _, model = name.partition(":")
    if family == "timm":
        found = _published(model)
        return {
            "size": int(found["input_size"][-1]),
            "crop": "center",
            "crop_share": float(found.get("crop_pct") or 0.875),
            "mean": tuple(found["mean"]),
            "std": tuple(found["std"]),
            "interpolation": "bilinear" if found.get("interpolation") == "bilinear" else "bicubic",
        }
    from torchvision import models

    require_torchvision(model)
    view = models.get_model_weights(model).DEFAULT.transforms()  # a description; nothing is fetched
    size, resized = int(view.crop_size[0]), int(view.resize_size[0])
    return {
        "size": size,
        "crop": "center",
        "crop_share": min(1.0, size / resized),
        "mean": tuple(view.mean),
        "std": tuple(view.std),
        "interpolation": "bicubic" if "bicubic" in str(view.interpolation).lower() else "bilinear",
    }


def _published(model: str) -> dict[str, Any]:
    """Return timm's description of the published weights of a net, by its tag, or by its first tag if none is given."""
    import timm

    require_timm(model)
    description = timm.get_pretrained_cfg(model)
    assert description is not None, model
    found: dict[str, Any] = description.to_dict()
    return found


def view_line(preprocess: Preprocess) -> str:
    """Describe the input of a net in one line: size, mean and standard deviation of pixels."""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return f"{preprocess.size} pixels, mean {mean}, std {std}"


def warn_of_view(name: str, preprocess: Preprocess) -> None:
    """Print a note if pixels are not normalized as the published weights of a net expect."""
    if not name.startswith(("timm:", "torchvision:")):
        return
    try:
        expected = preprocess.model_copy(update=published_view(name))
    except (ConfigError, ValueError, AttributeError):  # nothing is published
        return
    if (expected.mean, expected.std) != (preprocess.mean, preprocess.std):
        print(
            f"note: the published weights of {name} expect {view_line(expected)}; they get {view_line(preprocess)}. Where the "
            "file holds such weights, set preprocess.mean and preprocess.std",
            flush=True,
        )


def require_timm(name: str) -> None:
    """Check the name of a net of timm, with or without the tag of weights.

    Raises:
        ConfigError: there is no such net or tag; the message names known ones.
    """
    import timm

    architecture, dot, tag = name.partition(".")
    _require(architecture, timm.list_models(), "timm")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if dot and tag not in tags:
        raise ConfigError(
            f"timm has no weights {tag!r} of {architecture}; the tags are {', '.join(tags) or 'none: leave the tag out'}"
        )


def require_torchvision(name: str) -> None:
    """Check the name of a classification net of torchvision.

    Raises:
        ConfigError: there is no such net, or it is not a classifier. Detectors would download a backbone.
    """
    from torchvision import models

    classifiers = models.list_models(module=models)
    if name in models.list_models() and name not in classifiers:
        raise ConfigError(f"torchvision:{name} is no classification net; choose one of them, such as torchvision:resnet50")
    _require(name, classifiers, "torchvision")


def _require(name: str, known: list[str], library: str) -> None:
    if name in known:
        return
    if "/" in name or ":" in name:
        raise ConfigError(
            f"{library}:{name} would be fetched from the network, which no net is; name an architecture of {library} "
            f"({library}:NAME), and the file of its weights"
        )
    near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.3)
    raise ConfigError(f"{library} has no net {name!r}; the nearest are {', '.join(near) or 'not near at all'}")


def _last_linear(net: nn.Module, name: str) -> str:
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear or len(linear[-1].split(".")) > 2:
        raise ConfigError(f"torchvision:{name} does not end in a linear classifier; choose a classification net")
    return linear[-1]


def _keep_resolution(net: nn.Module, name: str) -> None:
    """EfficientNet for 32 pixel images: stages 2 and 3 at stride 1, as `small_image_model` in the released code."""
    stages = getattr(net, "blocks", None)
    if "efficientnet" not in name or stages is None:
        raise ConfigError(f"net.small_image changes the strides of an EfficientNet; timm:{name} is none")
    for stage in (stages[1], stages[2]):
        for module in stage[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
                module.stride = (1, 1)
