"""One training on whatever cluster there is: python -m tests.cluster.train_one ROOT --set scale.train_workers=2"""

from __future__ import annotations

import sys

from ssl_ray.cli import parse
from ssl_ray.pipelines.noisy_student import seeded
from ssl_ray.recipes.noisy_student import recipe
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.train import train

options = parse("train_one", "", ["tiny"], ["tiny", "--root", *sys.argv[1:]])
chosen = options.apply(recipe("tiny"))
with options.run() as run:
    images = run("images", ingest, chosen.images)
    run("teacher", train, seeded(chosen, chosen.teacher, "teacher"), images=images)
