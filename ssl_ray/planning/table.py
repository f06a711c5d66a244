"""What the samples come to: hours, bytes and money, on this machine and on a cluster that is described."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_ray.config import override
from ssl_ray.machine import usable_cores
from ssl_ray.planning.estimate import Estimate, lend
from ssl_ray.planning.machines import Cluster, Prices, matrix_speed
from ssl_ray.planning.measure import RAY_S, READERS, START_S, TRAININGS, start_factor
from ssl_ray.progress import duration
from ssl_ray.scale import Scale

EFFICIENCY = 0.9
"""Of a linear gain, when several workers train or label (docs/cluster.md)."""
HARNESS = 0.5
"""Of this machine's share of its matrix speed, what a GPU reaches of its own: small nets keep it less busy."""


LAUNCHES_S = 0.005
"""Seconds that a step takes a GPU at least."""


@dataclass(frozen=True)
class Projected:
    """A stage on a described cluster."""

    estimate: Estimate
    images_per_s: float
    seconds: float
    bound: str


def on_this_machine(estimates: Sequence[Estimate], scale: Scale, factor: float = 1.0) -> list[Projected]:
    """As measured, with the start of Ray's workers where the scale uses any; `factor`: as `start_factor`."""
    found = []
    for item in estimates:
        seconds = item.seconds
        if _on_ray(item.does, scale):
            seconds += START_S[item.does] * item.times * factor
        rate = item.images / item.seconds if item.images and item.seconds else 0.0
        found.append(Projected(item, rate, seconds, item.bound))
    return found


def on_cluster(estimates: Sequence[Estimate], cluster: Cluster, measured_on_gpu: bool, speed: float) -> list[Projected]:
    """By arithmetic: decoding grows with the CPUs, the model with the GPUs; driver's work stays as it is. Stages that are
    alike, those of a sweep's trials, run side by side, each on as many machines as there are for one.

    Args:
        speed: of a product of matrices on the device of the samples, in FLOP/s.
    """
    decode = max((item.decode_s for item in estimates), default=0.0)
    found = []
    for item in estimates:
        side = min(item.times, cluster.nodes)
        share = override(cluster, {"nodes": cluster.nodes // side})
        one = _on_share(item.once(), share, measured_on_gpu, speed, decode)
        found.append(Projected(item, one.images_per_s * side, one.seconds * math.ceil(item.times / side), one.bound))
    return found


def _on_share(item: Estimate, cluster: Cluster, measured_on_gpu: bool, speed: float, decode: float) -> Projected:
    """One stage on all of a cluster. `decode`: seconds an image, where the stage did not decode itself."""
    if not item.images:
        return Projected(item, 0.0, item.seconds + START_S.get(item.does, 0.0), "")
    factor = cluster.gpus if measured_on_gpu else cluster.gpus * cluster.machine.tflops * 1e12 * HARNESS / speed
    times = EFFICIENCY if cluster.nodes > 1 or cluster.gpus > 1 else 1.0
    model_s = item.model_s / (factor * times if factor else cluster.cpus / usable_cores() * times)
    if factor:  # a small net waits for its kernels to be launched, however fast the GPU
        # A training's batch is that of all its workers, a labelling's is one actor's.
        held = 1 if item.does in TRAININGS else cluster.gpus * times
        model_s = max(model_s, LAUNCHES_S / item.batch / held)
    data_s = (item.decode_s or decode) / (cluster.cpus * times) * item.fresh / item.images
    # Without a GPU both share the CPUs; with one, the slower of both decides.
    each = max(model_s, data_s) if factor else model_s + data_s
    seconds = item.images * each + item.fixed_s + START_S.get(item.does, 0.0)
    return Projected(item, 1 / each if each else 0.0, seconds, "reading and decoding" if data_s > model_s else "the model")


def _on_ray(does: str, scale: Scale) -> bool:
    workers = {"cluster": scale.cluster_actors} | dict.fromkeys(TRAININGS, scale.train_workers)
    return does in START_S and bool(workers.get(does, scale.label_actors_max if does in READERS else 0))


def show_plan(
    estimates: Sequence[Estimate], scale: Scale, cluster: Cluster | None, prices: Prices, warning: str | None = None
) -> None:
    """Print it. Nothing is written.

    Args:
        warning: what lets one doubt the samples.
    """
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    if not estimates:
        console.print("\nNothing would be computed.")
        return
    lend(estimates)
    workers = any(_on_ray(item.does, scale) for item in estimates)
    factor = start_factor() if workers else 1.0
    here = on_this_machine(estimates, scale, factor)
    start = RAY_S * factor if workers else 0.0
    total = sum(part.seconds for part in here) + start
    console.print()
    console.print(_table("on this machine", here))
    tried = sum(item.tried_s for item in estimates)
    console.print(f"\nOn this machine: {duration(total)} (from samples that took {duration(tried)}).")
    if warning:
        console.print(warning)
    if cluster is not None:
        import torch

        on_gpu = torch.cuda.is_available() and scale.train_gpus > 0
        there = on_cluster(estimates, cluster, on_gpu, matrix_speed())
        seconds = sum(part.seconds for part in there) + start
        console.print()
        console.print(_table(f"on {cluster.name}", there))
        console.print(f"\nOn {cluster.name}: {duration(seconds)}, {money(seconds, cluster)}.")
        machines = f"All {cluster.nodes} machines" if cluster.nodes > 1 else "The machine"
        console.print(
            f"{machines} for all of that time, at the table's prices, which are examples; without a head, and without the "
            "minutes that machines take to come up."
        )
        if cluster.nodes > 1 and any(item.times > 1 for item in estimates):
            console.print("Trials side by side, each on as many machines as there are for one.")
        if not on_gpu and cluster.gpus:
            console.print(
                "Its GPUs were not measured: their speed follows from the table's tflops and from what this machine reaches of "
                "its own. Run the plan on one of these machines for a plan by measurement."
            )
    read, written = (sum(getattr(item, key) for item in estimates) for key in ("read", "written"))
    images = sum(item.loads for item in estimates)
    monthly = written / 1e9 * prices.storage_usd_per_gb_month
    asked = images / 1000 * prices.usd_per_1000_reads
    console.print(
        f"Reads {size(read)}, writes {size(written)}. On S3: {dollars(monthly)} a month to keep, and {dollars(asked)} for "
        "requests where every image is a file of its own (next to nothing in Parquet or tar files)."
    )
    for item in estimates:
        if item.note:
            console.print(Text(f"note: {item.stage} {item.note}; its time is not in the sums"))


def _table(title: str, parts: Sequence[Projected]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in ((f"stage, {title}", "left"), ("images", "right"), ("images/s", "right"), ("bound by", "left"),
                          ("time", "right"), ("reads", "right"), ("writes", "right")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for part in parts:
        item = part.estimate
        images, rate = (f"{item.images:,}", f"{part.images_per_s:,.0f}") if item.images else ("", "")
        cells = [
            item.stage if item.times == 1 else f"{item.stage} ({item.times} times)",
            images,
            rate,
            part.bound,
            "?" if item.note else duration(part.seconds),
            size(item.read),
            size(item.written),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def size(count: float) -> str:
    for unit, base in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= base:
            return f"{count / base:,.1f} {unit}"
    return f"{count:.0f} B" if count else ""


def money(seconds: float, cluster: Cluster) -> str:
    """At the table's prices."""
    hours, machine = seconds / 3600, cluster.machine
    text = dollars(hours * cluster.nodes * machine.usd_per_hour)
    if machine.usd_per_hour_spot is not None:
        text += f", {dollars(hours * cluster.nodes * machine.usd_per_hour_spot)} on spot"
    return text


def dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.01 or not amount else "less than a cent"
