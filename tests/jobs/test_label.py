"""`jobs/label.py` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from ssl_ray.cli import run_job
from ssl_ray.pipelines import label
from tests.teachers import make_model

Make = Callable[..., Path]
Job = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    """Run the job in this process: its exit code and what it printed."""

    def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["jobs/label.py", "--root", str(root), "--scale", "inline", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        code = run_job(label.main)
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    return run


@pytest.fixture
def heap(make_folder: Make) -> Path:
    folder = make_folder("heap", {"": 30, "deep": 10})
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_label_a_folder_and_nothing_else(job: Job, tmp_path: Path, heap: Path) -> None:
    make_model(tmp_path / "m", ["cat", "dog"])
    arguments = ("--teacher", str(tmp_path / "m"), "--images", str(heap), "--set", "labeler.quarantine_budget=0.1")
    planned = job(tmp_path / "r", *arguments, "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "labels" in planned.stdout
    assert not (tmp_path / "r").exists()
    done = job(tmp_path / "r", *arguments)
    assert done.returncode == 0, done.stderr
    table = ds.dataset(tmp_path / "r" / "labels" / "labels").to_table()
    assert len(table) == 40
    assert set(table["label"].to_pylist()) <= {0, 1}
    quarantine = ds.dataset(tmp_path / "r" / "labels" / "quarantine").to_table().to_pylist()
    assert [row["image_id"] for row in quarantine] == ["unlabeled/broken.png"]
    assert "report.html" in done.stdout
    report = (tmp_path / "r" / "report" / "report.html").read_text()
    assert "40 images labeled with 2 classes" in report
    assert "cannot be decoded" in report
    assert json.loads((tmp_path / "r" / "scores.json").read_text())[0]["n"] == 40
    again = job(tmp_path / "r", *arguments)
    assert again.stdout.count("finished before") == 3
    changed = job(tmp_path / "r", *arguments, "--top-k", "1")
    assert changed.returncode == 2
    assert "top_k: None -> 1" in changed.stderr


def test_a_classifier_of_timm_with_a_weights_file(job: Job, tmp_path: Path, heap: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    from ssl_ray.models import load_model

    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=7).eval()
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, str(tmp_path / "w.safetensors"))
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    arguments = ["--teacher", "timm:resnet10t", "--weights", str(tmp_path / "w.safetensors"), "--images", str(heap),
                 "--classes", str(tmp_path / "names.txt"), "--top-k", "3", "--set", "labeler.quarantine_budget=0.1",
                 "--set", "labeler.precision=float32"]  # fmt: skip
    done = job(tmp_path / "r", *arguments)
    assert done.returncode == 0, done.stderr
    table = ds.dataset(tmp_path / "r" / "labels" / "labels").to_table()
    assert table.schema.field("top_labels").type.list_size == 3
    model = load_model(tmp_path / "r" / "teacher")
    assert model.classes == list("abcdefg")
    assert model.preprocess.size == 176, "as the published weights of this net want it"
    name, confidence = model.predict(heap / "3.png")[0]
    row = next(row for row in table.to_pylist() if row["image_id"] == "unlabeled/3.png")
    assert model.classes[row["label"]] == name
    assert row["confidence"] == pytest.approx(confidence, abs=1e-4)
    with torch.inference_mode():
        images = torch.zeros(2, 3, 176, 176)
        torch.testing.assert_close(model.net(images), net(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "nowhere"], "nowhere is no finished checkpoint"),
        (["--teacher", "timm:resnet10t"], "random weights"),
        (["--teacher", "timm:resnet10tt", "--weights", "W"], "the nearest are resnet10t"),
        (["--teacher", "timm:resnet10t", "--weights", "/none.pth"], "there is no weights file /none.pth"),
        (["--teacher", "timm:resnet18", "--weights", "W"], "does not fit timm:resnet18"),
        (["--teacher", "timm:resnet10t", "--weights", "W", "--classes", "C"], "tells 7 classes apart, and 2 names"),
        (["--teacher", "M", "--images", "sample:mnist5k"], "a sample brings labels"),
        (["--teacher", "M", "--set", "labeler.top=3"], "labeler.top_k"),
    ],
    ids=["no teacher", "no weights", "no net", "no file", "other net", "classes", "sample", "setting"],
)
def test_bad_input(job: Job, tmp_path: Path, heap: Path, arguments: list[str], message: str) -> None:
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("resnet10t", num_classes=7)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, str(tmp_path / "w.safetensors"))
    (tmp_path / "names.txt").write_text("a\nb\n")
    make_model(tmp_path / "m", ["cat", "dog"])
    places = {"W": str(tmp_path / "w.safetensors"), "C": str(tmp_path / "names.txt"), "M": str(tmp_path / "m")}
    given: list[Any] = [places.get(word, word) for word in arguments]
    if "--images" not in given:
        given += ["--images", str(heap)]
    done = job(tmp_path / "r", *given)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0
