"""Maps of a backbone by their stride: what pyramids and dense heads stand on, whatever the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ssl_ray.errors import ConfigError
from ssl_ray.nets.spinenet import SpineNet
from ssl_ray.settings.nets import SPINE_LEVELS

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Enough(Exception):
    """The last map that is wanted was there; what follows in the backbone is not computed."""


class Maps(nn.Module):
    """float [n, 3, H, W] -> one map for each stride, float [n, C, H / stride, W / stride].

    The backbone keeps the names of its weights, so that those of any checkpoint of ours, or of a library, fit. What it holds
    behind the last map (pooling, a last convolution) is not computed and does not learn.
    """

    def __init__(self, backbone: nn.Module, strides: Sequence[int]):
        """
        Raises:
            ConfigError: the backbone has no map of such a stride.
        """
        super().__init__()
        self.backbone = backbone
        self.strides = tuple(strides)
        found = _find(backbone)
        missing = [stride for stride in self.strides if stride not in found]
        if missing:
            there = ", ".join(map(str, sorted(found))) or "none"
            raise ConfigError(
                f"the backbone has no map of stride {', '.join(map(str, missing))}, but of {there}; change head.pyramid.strides"
            )
        self._names = [found[stride][0] for stride in self.strides]
        self.channels = [found[stride][1] for stride in self.strides]
        self._freeze_unused()

    @classmethod
    def of_levels(cls, backbone: SpineNet) -> Maps:
        """A backbone whose outputs are levels of a pyramid: they are taken as they are."""
        maps = cls.__new__(cls)
        nn.Module.__init__(maps)
        maps.backbone, maps.strides = backbone, tuple(2**level for level in SPINE_LEVELS)
        maps.channels, maps._names = [backbone.num_features] * len(SPINE_LEVELS), []
        return maps

    def _freeze_unused(self) -> None:
        """Weights that no map depends on do not learn: DistributedDataParallel waits for the gradient of all that do."""
        with _eval_mode(self.backbone), torch.enable_grad():
            torch.stack([item.sum() for item in self(torch.randn(1, 3, SIDE, SIDE))]).sum().backward()
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        if isinstance(self.backbone, SpineNet):
            return self.backbone.levels(x)
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str) -> None:
            def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
                seen[name] = output
                if len(seen) == len(self._names):
                    raise _Enough

            handles.append(self.backbone.get_submodule(name).register_forward_hook(hook))

        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for name in self._names:
                keep(name)
            self.backbone(x)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [seen[name] for name in self._names]


SIDE = 128
"""Of the image that a backbone is tried out with."""


def _find(backbone: nn.Module) -> dict[int, tuple[str, int]]:
    """The last module of every stride, with its channels.

    A block that makes its map smaller begins at the larger stride still (an expansion in front of a strided convolution): what
    lies inside such a block is no map. Containers do not count, for they hold whole stages.
    """
    names = {module: name for name, module in backbone.named_modules()}
    shapes: dict[str, tuple[int, int]] = {}  # stride, channels
    ran: list[str] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        name = names[module]
        ran.append(name)
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            stride, rest = divmod(SIDE, output.shape[2])
            if not rest:
                shapes[name] = (stride, int(output.shape[1]))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with _eval_mode(backbone), torch.no_grad():
            backbone(torch.zeros(1, 3, SIDE, SIDE))
    except (RuntimeError, AssertionError) as error:  # a transformer of one size
        why = str(error).strip().splitlines()[0] if str(error).strip() else "it takes images of one size"
        raise ConfigError(f"the backbone cannot serve boxes or masks: {why}; choose a convolutional net") from None
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(backbone.named_modules())

    def whole(name: str) -> bool:
        """Whether all blocks around a module end at its stride."""
        parts = name.split(".")
        around = [".".join(parts[:end]) for end in range(1, len(parts))]
        return all(
            isinstance(modules[outer], CONTAINERS) or shapes.get(outer, shapes[name])[0] == shapes[name][0] for outer in around
        )

    # timm says itself which modules end its stages; what comes behind the last one is for its classifier.
    published = getattr(backbone, "feature_info", None)
    stages = {str(item["module"]) for item in published} if isinstance(published, list) else None
    found: dict[int, tuple[str, int]] = {}
    for name in ran:
        if name and name in shapes and (name in stages if stages is not None else whole(name)):
            found[shapes[name][0]] = (name, shapes[name][1])
    return found


@contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    """What is tried out must not move batch-norm statistics."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
