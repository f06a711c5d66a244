"""What happens inside the namespaces of `datacentre`: labelling and training on three hosts, each of which loses one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.datacentre import ROOT, DataCentre, enter, until
from tests.faults.harness import BAD, write_corpus, write_teacher

ME = "tests.faults.several_hosts"
IMAGES = 3000


def inside(place: Path) -> None:
    made = DataCentre(place, workers=3)
    print("three hosts and their head are up", flush=True)
    write_corpus(place / "images", IMAGES)
    teacher = Path(write_teacher(place / "teacher"))
    for name, folder in (("images", place / "images"), ("teacher", teacher)):
        for path in folder.rglob("*"):
            if path.is_file():
                made.s3.upload_file(str(path), "bucket", f"{name}/{path.relative_to(folder)}")
    labelling(made)
    training(made)


def ended(job: subprocess.Popen[bytes], made: DataCentre, what: str) -> None:
    code = job.wait(timeout=240)
    if code:
        print(made.head.said()[-6000:], flush=True)
    assert code == 0, f"{what} ended with {code}"


def labelling(made: DataCentre) -> None:
    settings = {
        "labeler.precision": "float32", "labeler.quarantine_budget": 0.05, "scale.label_batch": 50, "scale.label_rows_per_file": 50,
        "scale.label_actors_min": 3, "scale.label_actors_max": 3, "scale.label_cpus": 3, "scale.label_threads": 1,
    }  # fmt: skip
    words = [str(ROOT / "jobs/label.py"), "--teacher", "s3://bucket/teacher", "--images", "s3://bucket/images/*.parquet"]
    words += [
        "--root",
        "s3://bucket/labels",
        *(word for pair in settings.items() for word in ("--set", f"{pair[0]}={pair[1]}")),
    ]
    job = made.job(*words)
    until("labels", lambda: job.poll() is not None or len(made.keys("labels/labels/labels/")) >= 10, 180)
    begin = time.monotonic()
    made.workers[2].cut()
    print(f"one host is cut off in the middle: {len(made.keys('labels/labels/labels/'))} files", flush=True)
    ended(job, made, "labelling")
    print(f"labelling ended {time.monotonic() - begin:.1f} s after the cut", flush=True)
    import pyarrow.dataset as ds
    import pyarrow.fs as pafs

    found = ds.dataset("bucket/labels/labels/labels", filesystem=pafs.FileSystem.from_uri("s3://bucket")[0], format="parquet")
    ids = found.to_table(columns=["image_id"])["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == IMAGES - BAD, len(ids)
    print(f"{len(ids)} labels, none twice", flush=True)


def training(made: DataCentre) -> None:
    job = made.job("-m", ME, "train", "s3://bucket/training")
    checkpoints = "training/student/training/step-"

    def steps() -> set[str]:
        return {key.split("/")[-2] for key in made.keys(checkpoints)}

    # The first one counts once every worker has told of it; a file of the second one says so.
    until("two checkpoints", lambda: job.poll() is not None or steps() - {"step-00000020"}, 240)
    begin = time.monotonic()
    made.workers[1].cut()
    print(f"one host is cut off after {max(steps())}", flush=True)
    ended(job, made, "training")
    record = json.loads(made.s3.get_object(Bucket="bucket", Key="training/student/_record.json")["Body"].read())
    results = record["results"]
    print(f"training ended {time.monotonic() - begin:.1f} s after the cut: from step {results['first_step']} on with "
          f"{results['workers']} worker", flush=True)  # fmt: skip
    assert results["first_step"] >= 20
    assert results["workers"] == 1
    # The hosts had nothing but S3 in common.
    for host in made.workers:
        assert not list((made.place / f"host{host.number}").glob("**/model.safetensors"))


def train_on(root: str) -> None:
    """The job on the head."""
    from ssl_ray.data.sources import ImagesConfig
    from ssl_ray.scale import Scale
    from ssl_ray.stage import Run
    from ssl_ray.stages.ingest import ingest
    from ssl_ray.stages.train import train
    from tests.faults.lose_a_trainer import config

    scale = Scale(
        train_workers=2, train_workers_min=1, train_cpus=3, train_threads=1, checkpoint_steps=20, notice_steps=5, start_timeout_s=20,
        resize_check_s=600,
    )  # fmt: skip
    run = Run(root, scale)
    images = run("images", ingest, ImagesConfig(labels=100, test_images=200))
    run("student", train, config(), images=images)


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["train"]:
        train_on(sys.argv[2])
    else:
        raise SystemExit(enter(ME, []))
