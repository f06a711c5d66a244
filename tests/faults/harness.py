"""A labelling job as its own process, something that goes wrong with it, and the comparison with a run without trouble."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ssl_ray.samples import mnist5k
from ssl_ray.tasks.masks import to_png
from tests.teachers import make_model

REPO = Path(__file__).parent.parent.parent
BAD = 20
"""Images of the corpus that cannot be decoded."""


def write_corpus(folder: Path, count: int = 5000) -> str:
    """Digits in Parquet, a few of them broken, some files."""
    sample = mnist5k()
    folder.mkdir(parents=True)
    for part in range(5):
        rows = range(part * count // 5, (part + 1) * count // 5)
        images = [to_png(sample.images[row % len(sample.images)]) for row in rows]
        for bad in range(BAD // 5):
            images[37 * bad + 5] = images[37 * bad + 5][:50]
        table = pa.table({"id": [f"digit-{row}" for row in rows], "image": images})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=200)
    return f"{folder}/*.parquet"


def write_teacher(folder: Path) -> str:
    """Slow enough on two cores that there is time to kill something: about a thousand images a second."""
    return make_model(folder, [str(digit) for digit in range(10)], **{"net.width": 32}).path


@dataclass
class Job:
    """`jobs/label.py` on a root."""

    root: Path
    images: str
    teacher: str
    settings: tuple[str, ...] = ()
    scale: str = "inline"

    def start(self, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        rows = () if any("rows_per_file" in text for text in self.settings) else ("scale.label_rows_per_file=100",)
        settings = (
            "labeler.precision=float32",
            "labeler.quarantine_budget=0.05",
            "scale.label_batch=50",
            *rows,
            *self.settings,
        )
        command = [sys.executable, "jobs/label.py", "--teacher", self.teacher, "--images", self.images, "--root", str(self.root),
                   "--scale", self.scale, *(word for text in settings for word in ("--set", text))]  # fmt: skip
        merged = os.environ | {"PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"} | (environment or {})
        merged.pop("RAY_ADDRESS", None)
        return subprocess.Popen(
            command, cwd=REPO, env=merged, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def run(self, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def label_files(self) -> list[Path]:
        return sorted((self.root / "labels" / "labels").glob("[0-9]*.parquet"))

    def wait_for_files(self, count: int, process: subprocess.Popen[str]) -> None:
        begin = time.monotonic()
        while len(self.label_files) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - begin < 120, "no labels"
            time.sleep(0.02)


def kill_group(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """The job and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


def pids(title: str, under: int) -> list[int]:
    """Processes whose command line holds some text, among those that a process started: other tests may run beside this one."""
    titles, parents = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                titles[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue

    def started(pid: int) -> bool:
        while pid in parents and pid != under:
            pid = parents[pid]
        return pid == under

    return [pid for pid, text in titles.items() if title in text and started(pid)]


def labels(root: Path | str) -> dict[str, Any]:
    """Ids, labels and confidences in order of the ids, and the quarantine."""
    found = ds.dataset(f"{root}/labels/labels").to_table(columns=["image_id", "label", "confidence"]).sort_by("image_id")
    bad = ds.dataset(f"{root}/labels/quarantine").to_table().sort_by("image_id")
    return {
        "ids": found["image_id"].to_pylist(),
        "label": found["label"].to_numpy(),
        "confidence": found["confidence"].to_numpy(),
        "quarantine": [(row["image_id"], row["reason"]) for row in bad.to_pylist()],
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Same ids, none twice, none missing, confidences within 1e-3; the quarantine too."""
    assert len(found["ids"]) == len(set(found["ids"])), "an image was labeled twice"
    assert found["ids"] == expected["ids"], "an image is missing"
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-3)
    assert found["quarantine"] == expected["quarantine"]
