"""ssl_ray: a few labels and very many unlabeled images into a better vision model, on Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ssl_ray.machine import cpu_quota, usable_cores

if TYPE_CHECKING:
    from ssl_ray.artifacts import Report
    from ssl_ray.models import load_model as load_model

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "evaluate",
    "hpt",
    "knowledge_transfer",
    "label",
    "load_model",
    "noisy_student",
    "rethinking",
    "simclrv2",
    "sweep",
]

if cpu_quota() is not None:
    # torch, Arrow and BLAS see the affinity of a process, but not the quota of its cgroup. They read this as they load.
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; whoever only wants the version or the configs need not wait for it.
    if name == "load_model":
        from ssl_ray.models import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _call(command: str, *recipe: str, **words: Any) -> Report:
    from ssl_ray.commands import call

    return call(command, *recipe, **words)


def noisy_student(recipe: str = "demo", **words: Any) -> Report:
    """Run `ssl-ray noisy-student` in this process.

    The words are those of the command line: `noisy_student(labeled="photos/train", unlabeled="photos/rest", root="runs/mine",
    scale="inline", settings={"student.optim.lr": 0.05})`. `ssl_ray.commands.call` describes them, what is returned and raised.
    """
    return _call("noisy-student", recipe, **words)


def simclrv2(recipe: str = "demo", **words: Any) -> Report:
    """Run `ssl-ray simclrv2` in this process; words as in `noisy_student`."""
    return _call("simclrv2", recipe, **words)


def hpt(recipe: str = "demo", **words: Any) -> Report:
    """Run `ssl-ray hpt` in this process; words as in `noisy_student`."""
    return _call("hpt", recipe, **words)


def knowledge_transfer(recipe: str = "demo", **words: Any) -> Report:
    """Run `ssl-ray knowledge-transfer` in this process; words as in `noisy_student`."""
    return _call("knowledge-transfer", recipe, **words)


def rethinking(recipe: str = "demo", **words: Any) -> Report:
    """Run `ssl-ray rethinking` in this process; words as in `noisy_student`."""
    return _call("rethinking", recipe, **words)


def label(**words: Any) -> Report:
    """Run `ssl-ray label` in this process; words as in `noisy_student`."""
    return _call("label", **words)


def evaluate(recipe: str = "demo", **words: Any) -> Report:
    """Run `ssl-ray evaluate` in this process; words as in `noisy_student`."""
    return _call("evaluate", recipe, **words)


def sweep(recipe: str = "demo", **words: Any) -> Report:
    """Run `ssl-ray sweep` in this process; words as in `noisy_student`."""
    return _call("sweep", recipe, **words)
