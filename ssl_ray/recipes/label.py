"""Settings of `ssl-ray label`: which images, which teacher, and what is stored."""

from __future__ import annotations

from ssl_ray.config import Config
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.health import HealthConfig
from ssl_ray.named_files import WeightsFile
from ssl_ray.settings.views import Preprocess
from ssl_ray.stages.label import LabelConfig


class TeacherConfig(Config):
    """A checkpoint of ours, or a classifier of a library with its weights."""

    source: str  # folder of a checkpoint, timm:NAME or torchvision:NAME
    weights: WeightsFile = None  # a .safetensors, .pth or .pt file, or `imagenet` for timm:tf_efficientnet_lite0
    classes: str | None = None  # a text file with a name a line, or `imagenet`; None: 0, 1, ...
    preprocess: Preprocess | None = None  # of a library's classifier; None: as its published weights want it


class LabelRecipe(Config):
    images: ImagesConfig
    teacher: TeacherConfig
    labeler: LabelConfig = LabelConfig()
    health: HealthConfig = HealthConfig(max_class_share=1.0)  # nobody knows what the images are; report, do not stop


def label_recipe(images: str, teacher: str, weights: str | None = None, classes: str | None = None) -> LabelRecipe:
    return LabelRecipe(
        images=ImagesConfig(labeled=None, unlabeled=images),
        teacher=TeacherConfig(source=teacher, weights=weights, classes=classes),
    )
