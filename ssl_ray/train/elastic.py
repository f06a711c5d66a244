"""How many workers an elastic training has: as many as the cluster holds, of the numbers that the recipe allows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy


def fitting(possible: int, allowed: Collection[int]) -> int:
    """The largest allowed number of workers that is possible; 0: none is."""
    return max((count for count in allowed if count <= possible), default=0)


class LanesPolicy(ElasticScalingPolicy):
    """Ray's policy, but for numbers of workers that would cut a lane in two, or give batch norms other images."""

    def __init__(self, scaling_config: ScalingConfig, allowed: Collection[int]):
        super().__init__(scaling_config)
        self.allowed = tuple(allowed)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return fitting(super()._count_possible_workers(reserved_resources), self.allowed)
