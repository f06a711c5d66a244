"""The commands of `ssl-ray`, as a program and as Python functions with the same words."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_ray.errors import ConfigError

if TYPE_CHECKING:
    from ssl_ray.artifacts import Report


@dataclass(frozen=True)
class Command:
    """One pipeline: the module below `ssl_ray.pipelines`, and one line of help."""

    module: str
    title: str


COMMANDS = {
    "noisy-student": Command("noisy_student", "A teacher labels images, a noised student learns from them (Xie et al., 2020)"),
    "simclrv2": Command("simclrv2", "Pretrain without labels, fine-tune on a few, distill (Chen et al., 2020)"),
    "hpt": Command("hpt", "Continue the pretraining of an encoder on your own images (Reed et al., 2022)"),
    "knowledge-transfer": Command("knowledge_transfer", "Clusters of a pretext net teach a small net (Noroozi et al., 2018)"),
    "rethinking": Command("self_training", "Self-training against pre-training, for boxes and masks too (Zoph et al., 2020)"),
    "label": Command("label", "Label images with any classifier, into Parquet files"),
    "evaluate": Command("evaluate", "Probe a checkpoint: linear, nearest neighbors, few labels, fine-tuning"),
    "sweep": Command("sweep", "Run a pipeline over a grid or a search, with seeds"),
}

OVERVIEW = """\
usage: ssl-ray COMMAND [RECIPE] [options]

Train a vision model with few labels and many unlabeled images, on one machine or a Ray cluster.

{commands}
  list KIND            show recipes, methods, backbones, sources or samples

`ssl-ray COMMAND --help` explains a command. `ssl-ray --version` prints the version.
"""


def run(arguments: Sequence[str]) -> Any:
    """Run the command that the arguments name.

    Raises:
        ConfigError: there is no such command.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(OVERVIEW.format(commands="\n".join(f"  {key:<20} {item.title}" for key, item in COMMANDS.items())), end="")
        return None
    if name == "--version":
        from ssl_ray import __version__

        print(__version__)
        return None
    if name == "list":
        return show_list(rest)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"there is no command {name!r}{meant} The commands are {', '.join(COMMANDS)} and list")
    return module_of(name).main(rest)


def module_of(command: str) -> Any:
    """Return the module of a pipeline."""
    return importlib.import_module(f"ssl_ray.pipelines.{COMMANDS[command].module}")


def show_list(arguments: Sequence[str]) -> None:
    """Print what there is of one kind.

    Raises:
        ConfigError: there is no such kind.
    """
    if len(arguments) != 1 or arguments[0] not in LISTS:
        raise ConfigError(f"give one of {', '.join(LISTS)}: ssl-ray list recipes, for example")
    for name, meaning in LISTS[arguments[0]]():
        print(f"{name:<28} {meaning}".rstrip())


def _recipes() -> list[tuple[str, str]]:
    found = []
    for command in COMMANDS:
        for name, make in getattr(module_of(command), "RECIPES", {}).items():
            described = getattr(make, "func", make).__doc__ or ""
            found.append((f"{command} {name}", described.strip().split("\n")[0]))
    return found


def _methods() -> list[tuple[str, str]]:
    from ssl_ray.train.run import METHODS

    return [(name, (config.__doc__ or "").strip().split("\n")[0]) for name, (config, _) in METHODS.items()]


def _backbones() -> list[tuple[str, str]]:
    from ssl_ray.settings.nets import BLOCKS, SIZES, VGG

    return [
        ("small_resnet", "for images of 28 to 64 pixels"),
        *((f"resnet:{depth}", "SimCLRv2's ResNet; net.multiplier widens it") for depth in BLOCKS),
        ("alexnet", ""),
        *((f"vgg:{depth}", "") for depth in VGG),
        *((f"spinenet:{size}", "for boxes and masks") for size in SIZES),
        ("timm:NAME", "any model of timm"),
        ("torchvision:NAME", "any classifier of torchvision"),
    ]


def _sources() -> list[tuple[str, str]]:
    return [
        ("folder/", "one folder per class, or images alone"),
        ("path/*.parquet", "an image column, and a label column if there are labels"),
        ("wds:path/shard-{0000..0099}.tar", "WebDataset"),
        ("coco:instances.json@images/", "COCO: classes, boxes or masks"),
        ("voc:VOC2012/", "PASCAL VOC: classes, boxes or masks"),
        ("sample:NAME", "ssl-ray list samples"),
    ]


def _samples() -> list[tuple[str, str]]:
    from ssl_ray.samples import SAMPLES

    return [(f"sample:{name}", "") for name in SAMPLES]


LISTS: Mapping[str, Callable[[], list[tuple[str, str]]]] = {
    "recipes": _recipes,
    "methods": _methods,
    "backbones": _backbones,
    "sources": _sources,
    "samples": _samples,
}


def call(command: str, *recipe: str, settings: Mapping[str, Any] | None = None, **words: Any) -> Report:
    """Run a command from Python, in this process.

    Args:
        recipe: name of the recipe; without it, the command's default.
        settings: values of settings by path, such as `{"student.optim.lr": 0.05}`.
        words: options of the command line, with `_` in place of `-`: `labeled="photos/train"`, `root="runs/mine"`. A list
            repeats an option, True gives one without a value.

    Returns:
        The report, whose `results` hold the scores and the path of the best model.

    Raises:
        SslRayError: as the command line does, where the error is one line and an exit code.
    """
    arguments = list(recipe)
    for name, value in words.items():
        option = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None and item is not False:
                arguments += [option] if item is True else [option, str(item)]
    for path, value in (settings or {}).items():
        arguments += ["--set", f"{path}={json.dumps(value)}"]
    report: Report = module_of(command).main(arguments)
    return report
