"""A trained model, for whoever wants to use it: `load_model("runs/noisy_student/1/student").predict("image.png")`."""

from __future__ import annotations

from pathlib import Path

from ssl_ray.artifacts import Checkpoint
from ssl_ray.errors import SslRayError
from ssl_ray.models.classifier import TrainedModel
from ssl_ray.models.scenes import SceneModel
from ssl_ray.nets.weights import own_checkpoint

__all__ = ["SceneModel", "TrainedModel", "load_model"]


def load_model(path: str | Path) -> TrainedModel | SceneModel:
    """The model in a checkpoint folder, such as `runs/noisy_student/1/student`, local or on S3.

    Raises:
        FileNotFoundError: the folder holds no finished checkpoint.
        DamagedError: its files cannot be read, or do not belong together.
    """
    checkpoint = Checkpoint(str(path))
    description = checkpoint.model
    centroids = own_checkpoint(checkpoint.path, "centroids.safetensors") if "clusters" in description else None
    weights = {} if "hog" in description else own_checkpoint(checkpoint.path)
    try:
        if "task" in description:
            return SceneModel(description, weights)
        return TrainedModel(description, weights, centroids)
    except SslRayError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # of pydantic and torch, too
        raise checkpoint.folder.damaged("model.json", f"it does not describe the weights beside it ({error})") from error
