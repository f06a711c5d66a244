"""Corpus, labels, checkpoints and root in buckets of a real S3 server; and what happens when it fails."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ray import lock
from ssl_ray.artifacts import Corpus, PseudoLabels
from ssl_ray.config import override
from ssl_ray.data.quarantine import quarantine_rows
from ssl_ray.data.shards import decode_all, read_encoded
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.data.sources.walk import walk
from ssl_ray.errors import SourceError, StorageError
from ssl_ray.models import load_model
from ssl_ray.scale import inline
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.label import LabelConfig, label
from ssl_ray.storage import Folder
from tests.photos import CLASSES, write_coco
from tests.s3 import SECRET, FailingProxy, environment, upload
from tests.teachers import make_model

Make = Callable[..., Path]
REPO = Path(__file__).parent.parent


def silent(root: str, **scale: Any) -> Run:
    return Run(root, override(inline(), scale), echo=lambda line: None)


def all_ids(images: Corpus, split: str = "unlabeled") -> list[str]:
    return [name for shard in images.shards(split) for name in images.rows(shard.shard)["image_id"].to_pylist()]


class TestFolder:
    def test_what_a_folder_does(self, bucket: str) -> None:
        folder = Folder(f"s3://{bucket}/a/b")
        assert not folder.exists()
        assert folder.names() == []
        folder.write_json("x.json", {"v": 1})
        folder.write_table("t.parquet", pa.table({"a": [1, 2, 3]}))
        assert folder.read_json("x.json") == {"v": 1}
        assert folder.read_table("t.parquet")["a"].to_pylist() == [1, 2, 3]
        assert folder.names(".parquet") == ["t.parquet"]
        assert folder.holds_more_than("x.json")
        folder.delete(last="x.json")
        assert not folder.holds_more_than("x.json")
        folder.ensure_writable()

    def test_many_files(self, bucket: str, s3: Any) -> None:
        """More than one page of a listing."""
        for number in range(1010):
            s3.put_object(Bucket=bucket, Key=f"many/{number:05d}.parquet", Body=b"")
        assert len(Folder(f"s3://{bucket}/many").names(".parquet")) == 1010


class TestBadPlaces:
    def test_no_such_bucket(self, s3: Any, make_folder: Make) -> None:
        # Written to, this server makes a missing bucket for an administrator; listed, it says that there is none.
        with pytest.raises(StorageError, match="bucket nobody-has-this does not exist"):
            list(walk("s3://nobody-has-this"))
        run = silent(str(make_folder("root", {})))
        with pytest.raises((SourceError, StorageError), match=r"nobody-has-this.* does not exist"):
            run("images", ingest, ImagesConfig(labeled="s3://nobody-has-this/train/"))

    def test_wrong_credentials(self, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in environment(s3_endpoint, secret="hushhush").items():
            monkeypatch.setenv(name, value)
        from ssl_ray.filesystems import _s3

        _s3.cache_clear()
        try:
            with pytest.raises(StorageError, match="refuses access") as caught:
                silent(f"s3://{bucket}/root")
            assert "hushhush" not in str(caught.value)
        finally:
            _s3.cache_clear()

    def test_no_permission(self, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in environment(s3_endpoint, key="reader").items():
            monkeypatch.setenv(name, value)
        from ssl_ray.filesystems import _s3

        _s3.cache_clear()
        try:
            with pytest.raises(StorageError, match="refuses access"):
                silent(f"s3://{bucket}/root")
        finally:
            _s3.cache_clear()


@pytest.fixture
def in_bucket(bucket: str, s3: Any, make_folder: Make, tmp_path: Path) -> dict[str, str]:
    """The same 24 unlabeled images as a folder, as Parquet and as a tar, and labeled ones."""
    upload(s3, make_folder("train", {"a": 12, "b": 12}), bucket, "train/")
    rest = make_folder("rest", {"": 20, "deep/er": 4})
    upload(s3, rest, bucket, "rest/")
    files = sorted(rest.rglob("*.png"))
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), tmp_path / "u.parquet", row_group_size=10)
    with tarfile.open(tmp_path / "u-00.tar", "w") as tar:
        for index, file in enumerate(files):
            info = tarfile.TarInfo(f"{index:03d}.png")
            info.size = file.stat().st_size
            tar.addfile(info, io.BytesIO(file.read_bytes()))
    for name in ("u.parquet", "u-00.tar"):
        s3.upload_file(str(tmp_path / name), bucket, f"files/{name}")
    base = f"s3://{bucket}"
    return {
        "labeled": f"{base}/train/",
        "folder": f"{base}/rest/",
        "parquet": f"{base}/files/*.parquet",
        "tar": f"wds:{base}/files/u-{{00..00}}.tar",
    }


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_label_a_bucket(kind: str, in_bucket: dict[str, str], bucket: str) -> None:
    run = silent(f"s3://{bucket}/runs/{kind}", label_rows_per_file=5)
    images = run("images", ingest, ImagesConfig(labeled=in_bucket["labeled"], unlabeled=in_bucket[kind]))
    assert images.num_images("unlabeled") == 24
    model = make_model(f"s3://{bucket}/model-{kind}", images.classes)
    labels: PseudoLabels = run("labels", label, LabelConfig(), images=images, model=model)
    assert sorted(labels.table(["image_id"])["image_id"].to_pylist()) == sorted(all_ids(images))
    assert len(labels.files) == 5
    lock.release(run.root)
    again = silent(f"s3://{bucket}/runs/{kind}")
    assert again("labels", label, LabelConfig(), images=images, model=model).record.computed == labels.record.computed
    lock.release(again.root)


def test_an_object_that_changed_or_went_is_quarantined(in_bucket: dict[str, str], bucket: str, s3: Any) -> None:
    run = silent(f"s3://{bucket}/runs/c")
    images = run("images", ingest, ImagesConfig(labeled=in_bucket["labeled"], unlabeled=in_bucket["folder"]))
    size, other = (s3.head_object(Bucket=bucket, Key=f"rest/{name}.png")["ContentLength"] for name in (3, 4))
    time.sleep(1.1)  # the server tells time in seconds
    s3.put_object(Bucket=bucket, Key="rest/3.png", Body=b"x" * size)  # as large as before
    s3.put_object(Bucket=bucket, Key="rest/4.png", Body=b"x")
    s3.delete_object(Bucket=bucket, Key="rest/5.png")
    model = make_model(f"s3://{bucket}/m", images.classes)
    labels = run("l", label, LabelConfig(quarantine_budget=0.5), images=images, model=model)
    assert labels.results["quarantine_reasons"] == {"changed since it was listed": 2, "was deleted since it was listed": 1}
    reasons = {row["image_id"]: row["reason"] for row in quarantine_rows(labels.folder / "quarantine")}
    assert reasons["unlabeled/3.png"].endswith("(written anew, as large as before)")
    assert reasons["unlabeled/4.png"].endswith(f"({other} bytes then, 1 now)")
    assert len(labels.table(["image_id"])) == 21
    lock.release(run.root)


class TestLease:
    def test_a_second_job_is_refused_and_a_dead_one_replaced(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        root = Folder(f"s3://{bucket}/root")
        monkeypatch.setattr(lock, "RENEW_S", 0.3)
        monkeypatch.setattr(lock, "LEASE_S", 2.0)
        first = lock._Lease(root)
        first.acquire()
        second = lock._Lease(root)
        with pytest.raises(StorageError, match="another job is at work on s3://"):
            second.acquire()
        first._stop.set()  # it dies: nothing is renewed, nothing released
        time.sleep(0.5)
        begin = time.monotonic()
        second.acquire()
        assert time.monotonic() - begin >= 1.5, "a lease is not taken before it is old"
        second.release()
        assert root.names() == []

    def test_a_lease_that_was_lost_is_noticed(self, bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lock, "RENEW_S", 0.2)
        mine = lock._Lease(Folder(f"s3://{bucket}/root"))
        mine.acquire()
        s3.put_object(Bucket=bucket, Key=f"root/{lock.LOCK}", Body=b'{"owner": "somebody else", "pid": 1, "host": "elsewhere"}')
        time.sleep(1.0)
        with pytest.raises(StorageError, match="process 1 on elsewhere"):
            mine.check()


@pytest.fixture
def proxy(s3_endpoint: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = FailingProxy(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.stop()


@pytest.mark.slow
class TestAServerThatFails:
    """After each: the labels are those of a run without failures."""

    def labels(self, root: str, sources: dict[str, str], kind: str) -> tuple[dict[str, Any], int]:
        run = silent(root, label_rows_per_file=5)
        images = run("images", ingest, ImagesConfig(labeled=sources["labeled"], unlabeled=sources[kind]))
        model = make_model(f"{root}/model", images.classes)
        found = run("labels", label, LabelConfig(precision="float32"), images=images, model=model)
        lock.release(run.root)
        return found.table(["image_id", "label", "confidence"]).to_pydict(), found.results["quarantined"]

    @pytest.mark.parametrize(("failure", "kind"), [("500", "folder"), ("503", "parquet"), ("cut", "tar"), ("close", "folder")])
    def test_now_and_then(self, in_bucket: dict[str, str], bucket: str, proxy: FailingProxy, failure: str, kind: str) -> None:
        expected = self.labels(f"s3://{bucket}/calm", in_bucket, kind)
        proxy.every, proxy.kind, proxy.failed = 8, failure, 0
        assert self.labels(f"s3://{bucket}/rough", in_bucket, kind) == expected
        assert proxy.failed > 5, "the server did fail"

    def test_away_for_twenty_seconds(self, in_bucket: dict[str, str], bucket: str, proxy: FailingProxy) -> None:
        expected = self.labels(f"s3://{bucket}/calm", in_bucket, "folder")

        def vanish() -> None:
            while proxy.seen < 40:
                time.sleep(0.01)
            proxy.stop()
            time.sleep(20)
            proxy.start()

        proxy.seen = 0
        thread = threading.Thread(target=vanish)
        thread.start()
        begin = time.monotonic()
        assert self.labels(f"s3://{bucket}/rough", in_bucket, "folder") == expected
        thread.join()
        assert time.monotonic() - begin > 20

    def test_away_for_good(self, bucket: str, proxy: FailingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        from ssl_ray import filesystems

        monkeypatch.setattr(filesystems, "PATIENCE_S", 2.0)
        proxy.stop()
        with pytest.raises(StorageError, match="does not answer"):
            Folder(f"s3://{bucket}/x").write_bytes("a", b"b")
        proxy.start()


@pytest.mark.slow
def test_noisy_student_with_everything_in_a_bucket(in_bucket: dict[str, str], bucket: str, s3_endpoint: str) -> None:
    """Images, checkpoints of Ray Train, labels, scores and report; and a second call that loads them all."""
    command = [sys.executable, "jobs/noisy_student.py", "tiny", "--root", f"s3://{bucket}/run", "--labeled", in_bucket["labeled"],
               "--unlabeled", in_bucket["folder"], "--set", "scale.checkpoint_steps=5", "--set", "teacher.batch=16",
               "--set", "student.batch=16", "--set", "scale.label_actors_max=0"]  # fmt: skip
    variables = os.environ | environment(s3_endpoint) | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    root = Folder(f"s3://{bucket}/run")
    assert {row["model"] for row in root.read_json("scores.json")} == {"teacher", "student-1"}
    assert b"<svg" in (root / "report").read_bytes("report.html")
    assert load_model(f"s3://{bucket}/run/1/student").classes == ["a", "b"]
    everything = (
        done.stdout + done.stderr + json.dumps([(root / name).read_json("_record.json") for name in ("images", "teacher")])
    )
    assert SECRET not in everything
    again = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True, check=False)
    assert again.stdout.count("finished before") == 8, again.stdout + again.stderr


@pytest.mark.slow
def test_boxes_in_a_bucket_on_two_workers_killed_on_the_way(s3: Any, bucket: str, s3_endpoint: str, tmp_path: Path) -> None:
    """Self-training for boxes, all of it in a bucket, two workers of Ray Train; killed while the teacher learns."""
    write_coco(tmp_path / "own")
    upload(s3, tmp_path / "own", bucket, "own/")
    base = f"s3://{bucket}"
    settings = {
        "images.task": "detection", "teacher.batch": 4, "student.batch": 4, "teacher.preprocess.size": 64,
        "student.preprocess.size": 64, "teacher.schedule.length": 120, "student.schedule.length": 4, "teacher.head.score": 0.001,
        "student.head.score": 0.001, "selection.min_confidence": 0.0, "health.max_class_share": 1.0, "scale.train_workers": 2,
        "scale.train_threads": 1, "scale.checkpoint_steps": 10, "scale.label_actors_max": 0,
    }  # fmt: skip
    command = [sys.executable, "jobs/self_training.py", "demo", "--labeled", f"coco:{base}/own/train.json@{base}/own/photos/",
               "--unlabeled", f"{base}/own/heap/", "--root", f"{base}/run", "--scale", "local",
               *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]  # fmt: skip
    variables = os.environ | environment(s3_endpoint) | {"PYTHONPATH": str(REPO)}
    root = Folder(f"{base}/run")
    first = subprocess.Popen(
        command, cwd=REPO, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        saved, end = root / "teachers/random-S1/training", time.monotonic() + 240
        while not saved.exists("checkpoint_manager_snapshot.json"):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < end, "waited in vain for a checkpoint"
            time.sleep(0.1)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    teacher = root / "teachers/random-S1"
    assert teacher.read_json("_record.json")["results"]["first_step"] >= 10, "training went on from a checkpoint"
    assert {row["model"] for row in root.read_json("scores.json")} == {"random-S1", "random-S1-student"}
    assert load_model(f"{base}/run/students/random-S1").classes == CLASSES
    assert b"<svg" in (root / "report").read_bytes("report.html")


def test_members_of_a_tar_come_in_few_requests(in_bucket: dict[str, str], bucket: str, proxy: FailingProxy) -> None:
    run = silent(f"s3://{bucket}/few")
    images = run("images", ingest, ImagesConfig(labeled=in_bucket["labeled"], unlabeled=in_bucket["tar"]))
    shard = images.shards("unlabeled")[0]
    proxy.seen = 0
    data = read_encoded(images, shard, np.arange(shard.num_rows))
    assert decode_all(data, Preprocess(size=16))[1] == []
    assert proxy.seen <= 8, "one read for all members, and a few questions for sizes"
    lock.release(run.root)
