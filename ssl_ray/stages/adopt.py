"""A classifier that others trained becomes a checkpoint of ours: weights as safetensors, net, classes and preprocessing."""

from __future__ import annotations

from typing import Any

from ssl_ray.artifacts import Checkpoint
from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.filesystems import read_file
from ssl_ray.named_files import hash_of as hash_of
from ssl_ray.scale import Scale
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import stage
from ssl_ray.storage import Folder
from ssl_ray.text import distinct, lines_of


class AdoptConfig(Config):
    """A classifier of a library with a file of weights. The hash is part of the identity: another file, another teacher."""

    net: str  # timm:NAME or torchvision:NAME
    weights: str
    weights_hash: str
    classes: tuple[str, ...] = ()  # names in the order of the outputs; none: 0, 1, ...
    preprocess: Preprocess | None = None  # None: as the library's own weights of this net want it


def class_names(source: str | None) -> tuple[str, ...]:
    """Read names from a text file, a line each, or take those of ImageNet's 1,000 classes; none for None. The second of two
    like names gets its number.

    Raises:
        ConfigError: there is no such file.
        SourceError: it is no text.
    """
    if source is None:
        return ()
    if source == "imagenet":
        from timm.data import ImageNetInfo

        return tuple(distinct(str(ImageNetInfo().index_to_description(index)) for index in range(1000)))
    try:
        return tuple(distinct(lines_of(read_file(source), source)))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {source} with the names of the classes; write one name a line") from None


@stage(Checkpoint)
def adopt(config: AdoptConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    """Raises:
    ConfigError: an unknown net, weights that do not fit it, or another number of classes.
    """
    import torch
    from safetensors.torch import save

    from ssl_ray.nets import build_trained
    from ssl_ray.nets.library import classifier_weight, library_classifier, published_view, view_line
    from ssl_ray.nets.weights import imagenet_weights, misfits, read_weights
    from ssl_ray.settings.nets import NetConfig

    if config.weights == "imagenet":
        weights = imagenet_weights(config.net, library_classifier(config.net, 1000))
    else:
        weights = read_weights(config.weights)
    num_classes = int(weights[classifier_weight(config.net, weights)].shape[0])
    classes = list(config.classes) or [str(index) for index in range(num_classes)]
    if len(classes) != num_classes:
        raise ConfigError(
            f"{config.weights} tells {num_classes} classes apart, and {len(classes)} names were given; correct --classes"
        )
    net = NetConfig(name=config.net, head="library")
    model = build_trained(net, num_classes)
    own = model.state_dict()
    found = {f"net.{key}": value for key, value in weights.items()}
    if problems := misfits(own, found):
        named = ", ".join(problem.removeprefix("net.") for problem in problems[:3])
        raise ConfigError(
            f"{config.weights} does not fit {config.net}: {named}; name the net of the weights, or save them again"
        )
    model.load_state_dict({key: found.get(key, value) for key, value in own.items()})
    preprocess = config.preprocess or Preprocess.model_validate(published_view(config.net))
    tensors = {
        key: value.detach().contiguous() if isinstance(value, torch.Tensor) else value
        for key, value in model.state_dict().items()
    }
    out.write_bytes("model.safetensors", save(tensors))
    description = {
        "net": net.model_dump(mode="json"),
        "preprocess": preprocess.model_dump(mode="json"),
        "num_classes": num_classes,
        "classes": classes,
    }
    out.write_json("model.json", description)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "summary": f"{config.net}, {parameters:,} parameters, {num_classes:,} classes, {view_line(preprocess)}",
        "parameters": parameters,
        "preprocess": preprocess.model_dump(mode="json"),
    }
