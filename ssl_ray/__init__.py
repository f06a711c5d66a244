"""ssl_ray: a few labels and very many unlabeled images into a better vision model, on Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ssl_ray.machine import cpu_quota, usable_cores

if TYPE_CHECKING:
    from ssl_ray.models import load_model as load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]

if cpu_quota() is not None:
    # torch, Arrow and BLAS see the affinity of a process, but not the quota of its cgroup. They read this as they load.
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; whoever only wants the version or the configs need not wait for it.
    if name == "load_model":
        from ssl_ray.models import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
