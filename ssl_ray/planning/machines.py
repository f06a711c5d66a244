"""A small table of machines and prices, which the user can edit, and clusters that are described in words: `4xg5.2xlarge`."""

from __future__ import annotations

import re
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from ssl_ray.config import Config, problems_of
from ssl_ray.errors import ConfigError
from ssl_ray.machine import usable_cores
from ssl_ray.values import parse_json

HERE = "this machine"


class Machine(Config):
    """One kind of node."""

    cpus: Annotated[int, Field(ge=1)]
    gpus: Annotated[int, Field(ge=0)]
    tflops: Annotated[float, Field(ge=0)] = 0.0  # of one GPU: dense bfloat16
    usd_per_hour: Annotated[float, Field(ge=0)]
    usd_per_hour_spot: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _fast(self) -> Machine:
        if self.gpus and not self.tflops:
            raise ValueError("a machine with GPUs needs their tflops")
        return self


class Prices(Config):
    """The table."""

    note: str = ""
    storage_usd_per_gb_month: Annotated[float, Field(ge=0)] = 0.0
    usd_per_1000_reads: Annotated[float, Field(ge=0)] = 0.0
    usd_per_1000_writes: Annotated[float, Field(ge=0)] = 0.0
    machines: dict[str, Machine]


class Cluster(Config):
    """So many nodes of one kind; the head is not counted, since it computes nothing."""

    name: str
    nodes: Annotated[int, Field(ge=1)]
    machine: Machine

    @property
    def cpus(self) -> int:
        return self.nodes * self.machine.cpus

    @property
    def gpus(self) -> int:
        return self.nodes * self.machine.gpus


def prices(path: str | None = None) -> Prices:
    """The table that comes with the package, or the user's.

    Raises:
        ConfigError: it cannot be read; the first problem is named.
    """
    try:
        text = Path(path).read_text() if path is not None else files("ssl_ray.planning").joinpath("machines.json").read_text()
        return Prices.model_validate(parse_json(text))
    except OSError as error:
        raise ConfigError(f"--prices {path}: {error.strerror}; copy ssl_ray/planning/machines.json and edit it") from None
    except ValidationError as error:
        raise ConfigError(f"--prices {path}: {problems_of(error)}") from None
    except ValueError as error:
        raise ConfigError(f"--prices {path} is no JSON: {error}") from None


def described(text: str, table: Prices) -> Cluster:
    """`4xg5.2xlarge`, or one `g5.2xlarge`.

    Raises:
        ConfigError: it cannot be read, or the table has no such machine.
    """
    match = re.fullmatch(r"(?:(\d{1,9})x)?(.+)", text.strip())
    count, name = match.groups() if match else (None, text)
    if name not in table.machines:
        raise ConfigError(f"--on {text}: the table has no machine {name!r}; it has {', '.join(table.machines)} (--prices FILE)")
    if count is not None and int(count) < 1:
        raise ConfigError(f"--on {text}: a cluster has one node or more")
    return Cluster(name=text, nodes=int(count or 1), machine=table.machines[name])


def this_machine() -> Cluster:
    return Cluster(name=HERE, nodes=1, machine=Machine(cpus=usable_cores(), gpus=0, usd_per_hour=0.0))


def matrix_speed() -> float:
    """Multiply-adds a second, times two, that a product of matrices reaches on the device that samples are measured on."""
    import torch

    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(6):
        begin = time.perf_counter()
        (left @ left).sum().item()
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best
