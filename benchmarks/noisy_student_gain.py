"""What unlabeled images are worth: best and last student against the teacher, over seeds, labels drawn anew each time.

    python -m benchmarks.noisy_student_gain demo --seeds 5
    python -m benchmarks.noisy_student_gain fashion --seeds 5
    python -m benchmarks.noisy_student_gain fashion-same-net --seeds 5

Settings were chosen on a validation split (`--set images.val_images=...`), never on test. Beside the teacher stands the
student's own net trained on the labels alone, with the student's noise, as many steps and as large batches, so that a
larger net is not mistaken for the worth of unlabeled images.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from benchmarks.record import interval, load, save
from ssl_ray.config import override
from ssl_ray.pipelines.noisy_student import noisy_student, scores, seeded, student_of
from ssl_ray.recipes.noisy_student import recipe
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.train import train


def one_seed(name: str, seed: int, root: str, baseline: bool) -> dict[str, Any]:
    chosen = override(recipe(name), {"seed": seed, "images.seed": seed, "selection.seed": seed})
    run = Run(root, inline())  # no Ray: what is measured here is accuracy, and it does not depend on the scale
    report = noisy_student(run, chosen)
    rows = list(report.results["scores"])
    if baseline:
        images = run("images", ingest, chosen.images)
        student = student_of(chosen, 1)
        alone = override(student, {"mix": "labeled", "batch": sum(student.per_step())})
        net = run("labels-only", train, seeded(chosen, alone, "labels-only"), images=images)
        rows += scores(run, images, "labels-only", net, chosen).rows
    top1 = {row["model"]: row["value"] for row in rows if row["metric"] == "top1" and row["split"] == "test"}
    return {"seed": seed, "top1": top1, "n": next(row["n"] for row in rows if row["split"] == "test")}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    students = sorted(name for name in runs[0]["top1"] if name.startswith("student-"))
    gains = {name: [100 * (run["top1"][name] - run["top1"]["teacher"]) for run in runs] for name in students}
    gains["best"] = [max(gains[name][i] for name in students) for i in range(len(runs))]
    if "labels-only" in runs[0]["top1"]:
        gains["over labels-only"] = [100 * (run["top1"][students[-1]] - run["top1"]["labels-only"]) for run in runs]
    return {
        "accuracy": {name: interval([100 * run["top1"][name] for run in runs]) for name in runs[0]["top1"]},
        "gain": {name: interval(values) for name, values in gains.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe", choices=["demo", "fashion", "fashion-same-net"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-baseline", action="store_true", help="leave out the student's net on labels alone")
    options = parser.parse_args()
    name = f"noisy_student_gain-{options.recipe}"
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as root:
            runs.append(one_seed(options.recipe, seed, root, not options.no_baseline))
        settings = recipe(options.recipe).model_dump(mode="json")
        save(name, {"recipe": options.recipe, "settings": settings, "runs": runs, **summarise(runs)})
    record = load(name)
    assert record is not None
    for model, (mean, low, high) in record["accuracy"].items():
        print(f"{model:<18} top-1 {mean:6.2f} %  [{low:.2f}, {high:.2f}]")
    for model, (mean, low, high) in record["gain"].items():
        print(f"gain {model:<18} {mean:+.2f} points  [{low:+.2f}, {high:+.2f}]  n = {len(runs)} seeds")


if __name__ == "__main__":
    main()
