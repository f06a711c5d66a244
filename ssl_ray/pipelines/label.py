"""Label any heap of images with any classifier; killed at any moment, the same command goes on where it was.

    ssl-ray label --teacher runs/noisy_student/2/student --images photos/ --root runs/labels
    ssl-ray label --teacher timm:resnet50 --weights resnet50.safetensors --classes names.txt \\
        --images 's3://bucket/*.parquet' --root s3://bucket/labels --top-k 5 --scale cluster
    ssl-ray label --teacher timm:tf_efficientnet_lite0 --weights imagenet --classes imagenet \\
        --images 'wds:shards-{000..099}.tar'

Labels are Parquet files: image_id, shard, row, confidence, label, probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssl_ray import health
from ssl_ray.artifacts import Checkpoint, PseudoLabels, Report
from ssl_ray.cli import base_parser, options_of, whole
from ssl_ray.config import parse_assignment
from ssl_ray.data.sources import GRAMMAR
from ssl_ray.errors import ConfigError
from ssl_ray.recipes.label import LabelRecipe, TeacherConfig, label_recipe
from ssl_ray.report.terminal import finish_labels
from ssl_ray.stage import Run
from ssl_ray.stages.adopt import AdoptConfig, adopt, class_names, hash_of
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import label
from ssl_ray.stages.report import ReportConfig, report_labels


def label_images(run: Run, recipe: LabelRecipe) -> tuple[PseudoLabels, Report]:
    if recipe.health.min_precision:
        raise ConfigError("health.min_precision needs held-out labels, which this job has not; `noisy-student` has")
    teacher = open_teacher(run, recipe.teacher)  # before a listing that may take hours
    images = run("images", ingest, recipe.images)
    labels = run("labels", label, recipe.labeler, images=images, model=teacher)
    settings = ReportConfig(title="Labels", recipe=recipe.model_dump(mode="json"))
    report = run("report", report_labels, settings, images=images, labels=labels)
    if not run.plan:
        health.check_labels(labels.results["health"], recipe.health)
    return labels, report


def open_teacher(run: Run, config: TeacherConfig) -> Checkpoint:
    """A finished checkpoint, or a stage that makes one of a library's classifier.

    Raises:
        ConfigError: there is no checkpoint, or the weights are not named.
    """
    if not config.source.startswith(("timm:", "torchvision:")):
        if config.weights is not None:
            raise ConfigError(f"--weights belongs to a teacher timm:NAME or torchvision:NAME; {config.source} has its own")
        return Checkpoint.named(config.source, ", or timm:NAME or torchvision:NAME with --weights FILE")
    if config.weights is None:
        raise ConfigError(f"{config.source} has random weights; name a file with --weights FILE, or --weights imagenet")
    settings = AdoptConfig(
        net=config.source,
        weights=config.weights,
        weights_hash=hash_of(config.weights),
        classes=class_names(config.classes),
        preprocess=config.preprocess,
    )
    teacher: Checkpoint = run("teacher", adopt, settings)
    return teacher


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the command, and return its report; None for a plan."""
    parser = base_parser("label", __doc__.split("\n\n")[0])
    parser.add_argument(
        "--teacher", required=True, metavar="MODEL", help="folder of a checkpoint, timm:NAME or torchvision:NAME"
    )
    parser.add_argument("--images", required=True, metavar="SRC", help=GRAMMAR)
    parser.add_argument(
        "--weights", metavar="FILE", help="of a timm or torchvision classifier; `imagenet` for tf_efficientnet_lite0"
    )
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line; `imagenet`; default: 0, 1, ...")
    parser.add_argument("--top-k", type=whole, metavar="K", help="keep only the K largest probabilities of an image")
    parsed = parser.parse_args(arguments)
    settings: dict[str, Any] = dict(parse_assignment(text) for text in parsed.settings)
    if parsed.top_k is not None:
        settings["labeler.top_k"] = parsed.top_k
    options = options_of(parsed, settings)
    recipe = options.apply(label_recipe(parsed.images, parsed.teacher, parsed.weights, parsed.classes))
    with options.run() as run:
        labels, report = label_images(run, recipe)
    if options.plan is not None:
        return None
    finish_labels(run.root, labels, report)
    return report
