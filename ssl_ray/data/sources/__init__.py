"""Sources of images, local or `s3://`. All jobs use the same notation:

folder/                        image files below it; in a labeled source, the first sub-folder is the class
path/*.parquet                 encoded images in a column, one or many files
wds:path/shard-{0000..0099}.tar   WebDataset: images in tar files, labels in `.cls` members
coco:instances.json@images/    the images that a COCO file names
voc:VOC2012/                   PASCAL VOC; voc:VOC2012/@train takes one of its lists (ImageSets)
sample:NAME                    the real sample data of `ssl_ray.samples`
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ssl_ray.data.sources.annotated import BETWEEN, list_coco, list_voc
from ssl_ray.data.sources.folder import list_folder
from ssl_ray.data.sources.listing import GRAMMAR, Listing, require_folder
from ssl_ray.data.sources.objects import list_objects
from ssl_ray.data.sources.parquet import ColumnsConfig, list_parquet
from ssl_ray.data.sources.webdataset import list_webdataset
from ssl_ray.errors import SourceError
from ssl_ray.paths import problem_of
from ssl_ray.redaction import carries_secrets
from ssl_ray.views.channels import Decoding

__all__ = ["BETWEEN", "GRAMMAR", "ColumnsConfig", "ImagesConfig", "Listing", "check_folders", "list_labeled", "list_source"]


class ImagesConfig(Decoding):
    """Settings of a corpus. With a sample, or with `labels`, the labels that are not drawn are hidden and kept as `truth`."""

    task: Literal["classification", "detection", "segmentation"] = "classification"  # what labels are: classes, boxes or masks
    labeled: str | None = "sample:mnist5k"  # None: nothing to train on, only images to be labeled
    unlabeled: str | None = None
    test: str | None = None
    labels: Annotated[int, Field(ge=1)] | None = None  # labels drawn, equally many per class; None: all
    test_images: Annotated[int, Field(ge=0)] | None = None  # drawn by class share if there is no `test`; None: a fifth
    val_images: Annotated[int, Field(ge=0)] = 0  # drawn by class share from the labeled images
    shard_rows: Annotated[int, Field(ge=1, le=100_000)] = 2000
    columns: ColumnsConfig = ColumnsConfig()
    deduplicate: bool = False  # of unlabeled images with the same bytes, keep one
    leaks: Literal["refuse", "drop", "ignore"] = "refuse"  # test images that also stand among the others
    near_leaks: Annotated[float, Field(gt=0, le=1)] | None = None  # cosine from which two images are one; None: bytes only
    leak_read_mb: Annotated[int, Field(ge=0)] = (
        4096  # bytes that ingest may read of the unlabeled images, and of the labeled ones
    )
    several_labels: bool = False  # of an image: the classes of the boxes of coco: and voc:, for probes of an encoder
    empty_categories: bool = False  # of COCO: keep categories without objects
    needs_unlabeled: bool = True  # False: labeled images are enough, as for an evaluation
    seed: int = 0

    @property
    def decoding(self) -> Decoding:
        return Decoding(background=self.background, range=self.range)

    @model_validator(mode="after")
    def _one_kind(self) -> ImagesConfig:
        if self.several_labels and self.task != "classification":
            raise ValueError(f"several_labels belongs to task=classification, not to {self.task}")
        return self

    @field_validator("labeled", "unlabeled", "test")
    @classmethod
    def _is_usable(cls, source: str | None) -> str | None:
        # Checked before the first record is written. The message must not repeat the credentials.
        if source is not None and carries_secrets(source):
            raise ValueError("credentials do not belong into a path; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if source is not None and not source.strip():
            raise ValueError(f"a source is empty; give {GRAMMAR}")
        if source is not None and (problem := problem_of(source)):
            raise ValueError(problem)
        return source


def check_folders(images: ImagesConfig) -> None:
    """Check before work begins that folders of images exist. Other sources are checked when they are listed.

    Raises:
        SourceError: a folder of images does not exist.
    """
    for source in (images.labeled, images.unlabeled, images.test):
        if (
            source is not None
            and not source.startswith(("wds:", "coco:", "voc:", "sample:"))
            and not source.lower().endswith(".parquet")
        ):
            require_folder(source)


def list_labeled(source: str, config: ImagesConfig) -> Listing:
    """List all images of a labeled source, each with one class, several classes, or a target (detection, segmentation).

    Raises:
        SourceError: as `list_source`.
    """
    if config.task != "classification":
        return list_objects(source, config.task, empty_categories=config.empty_categories)
    return list_source(source, config.columns, labeled=True, several=config.several_labels)


def list_source(
    source: str, columns: ColumnsConfig, *, labeled: bool, several: bool = False, task: str = "classification"
) -> Listing:
    """List all images of a source.

    Args:
        labeled: list one class per image, too.
        several: list several classes per image, with `BETWEEN` between their names.
        task: its folder of VOC's lists is searched first.

    Raises:
        SourceError: the source does not exist, holds no images, or lacks labels.
    """
    if several and labeled and not source.startswith(("coco:", "voc:")):
        raise SourceError(f"{source}: several labels an image come from coco: or voc:; set images.several_labels=false")
    if source.startswith("wds:"):
        return list_webdataset(source, columns, labeled=labeled)
    if source.startswith("coco:"):
        return list_coco(source, labeled=labeled, several=several)
    if source.startswith("voc:"):
        return list_voc(source, labeled=labeled, several=several, kind="Segmentation" if task == "segmentation" else "Main")
    if source.startswith("sample:"):
        raise SourceError(f"{source}: a sample brings labels, test and unlabeled images of its own; give it as --labeled")
    if source.lower().endswith(".parquet"):
        return list_parquet(source, columns, labeled=labeled)
    return list_folder(source, labeled=labeled)
