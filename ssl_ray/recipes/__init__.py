"""Settings of the papers, and of smaller machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ssl_ray.config import ConfigT
from ssl_ray.errors import ConfigError


def find(recipes: Mapping[str, Callable[[], ConfigT]], name: str) -> ConfigT:
    """A recipe by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in recipes:
        raise ConfigError(f"there is no recipe {name!r}; the recipes are {', '.join(recipes)}")
    return recipes[name]()
