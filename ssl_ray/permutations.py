"""Sets of permutations for puzzles, from a seed.

Sources: Jigsaw (Noroozi and Favaro, ECCV 2016, algorithm 1): greedily the permutation that is farthest from those chosen so
far, in Hamming distance, by its mean or its minimum. The 701 of Jigsaw++ (Noroozi et al., CVPR 2018) have distance 3 at
least, which the greedy rule by the mean does not keep; random draws without near duplicates agree with the released set's
histogram.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.randomness import generator

TILES = 9


class PermutationsConfig(Config):
    count: Annotated[int, Field(ge=2)] = 701
    rule: Literal["mean", "minimum", "reject"] = "reject"  # greedy by mean or least distance; or draws that keep a distance
    distance: Annotated[int, Field(ge=1, le=TILES)] = 3  # reject: at least so many tiles stand elsewhere
    seed: int = 0

    @model_validator(mode="after")
    def _enough(self) -> PermutationsConfig:
        most = math.factorial(TILES)
        if self.count > most:
            raise ValueError(f"{TILES} tiles have {most:,} permutations; {self.count} are too many")
        return self


def permutations(config: PermutationsConfig) -> np.ndarray:
    """uint8 [count, 9]: slot i of a puzzle shows tile row[i]. All differ, and none is the identity under `reject`.

    Raises:
        ConfigError: there are not so many with that distance.
    """
    draw = generator(config.seed, "permutations")
    if config.rule == "reject":
        return _rejected(config, draw)
    every = np.array(list(itertools.permutations(range(TILES))), np.uint8)
    chosen = [int(draw.integers(len(every)))]
    mean = config.rule == "mean"
    # A running sum, or a running minimum, of the distance to all chosen ones; the chosen ones leave.
    score = np.zeros(len(every), np.int32) if mean else np.full(len(every), TILES + 1, np.int32)
    for _ in range(config.count - 1):
        distance = (every != every[chosen[-1]]).sum(axis=1, dtype=np.int32)
        score = score + distance if mean else np.minimum(score, distance)
        score[chosen] = -1
        chosen.append(int(score.argmax()))
    return every[chosen]


def _rejected(config: PermutationsConfig, draw: np.random.Generator) -> np.ndarray:
    kept, tries = np.empty((config.count + 1, TILES), np.uint8), 0
    kept[0] = np.arange(TILES)  # the solved puzzle counts as taken
    number = 1
    while number <= config.count:
        found = draw.permutation(TILES).astype(np.uint8)
        tries += 1
        if ((kept[:number] != found).sum(axis=1) >= config.distance).all():
            kept[number], number, tries = found, number + 1, 0
        elif tries > 100_000:
            raise ConfigError(
                f"no more than {number - 1} permutations with distance {config.distance} were found; lower "
                f"permutations.count or "
                "permutations.distance"
            )
    return kept[1:]
