"""How labelling grows: ten times the images, a restart near the end, a hundred thousand finished files, ten million labels.

python -m benchmarks.label_scale [growth] [restart] [planning] [selection]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.label_throughput import PIXELS, bare, in_a_process, write_images
from benchmarks.record import load, save
from ssl_ray.artifacts import Checkpoint, PseudoLabels, Record
from ssl_ray.data.predict import predict
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.machine import usable_cores
from ssl_ray.scale import inline, local
from ssl_ray.selection import SelectionConfig
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.adopt import AdoptConfig, adopt
from ssl_ray.stages.ingest import ingest
from ssl_ray.stages.select import select
from ssl_ray.storage import Folder

REPO = Path(__file__).parent.parent


def memory_of(session: int) -> int:
    """Bytes that all processes of a session hold; what several share is parted among them (PSS)."""
    total = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.getsid(int(entry)) != session and b"ssl_ray-" not in Path(f"/proc/{entry}/cmdline").read_bytes():
                title = Path(f"/proc/{entry}/cmdline").read_bytes()
                if not title.startswith(b"ray::"):
                    continue
            for line in Path(f"/proc/{entry}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except (OSError, ProcessLookupError):
            continue
    return total


def job(images: str, teacher: str, root: Path) -> dict[str, float]:
    """`ssl-ray label` on Ray as its own command: seconds, and the peak of the memory of all its processes."""
    command = [sys.executable, "-m", "ssl_ray", "label", "--teacher", teacher, "--images", images, "--root", str(root)]
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.5):
            peak = max(peak, memory_of(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    stop.set()
    watcher.join()
    if code:
        raise RuntimeError(f"the job ended with {code}")
    record = Record.load(Folder(str(root / "labels")))
    assert record is not None
    return {"seconds": round(time.perf_counter() - begin, 1), "label_s": record.wall_s, "peak_mib": round(peak / 2**20)}


def a_teacher(run: Run, pixels: int) -> Checkpoint:
    view = Preprocess(size=pixels)
    settings = AdoptConfig(net="timm:tf_efficientnet_lite0", weights="imagenet", weights_hash="imagenet", preprocess=view)
    teacher: Checkpoint = run("teacher", adopt, settings)
    return teacher


def growth(work: Path) -> dict[str, Any]:
    """20,000 and 200,000 images with the same small net."""
    from tests.teachers import make_model

    teacher = make_model(work / "small", [str(i) for i in range(10)], **{"net.width": 16}).path
    rows = {}
    for count in (20_000, 200_000):
        write_images(work / f"images-{count}", count)
        rows[str(count)] = job(f"{work}/images-{count}/*.parquet", teacher, work / f"root-{count}")
        print(count, rows[str(count)], flush=True)
    small, large = rows["20000"], rows["200000"]
    return {
        "rows": rows,
        "memory_ratio": round(large["peak_mib"] / small["peak_mib"], 3),
        "time_ratio": round(large["seconds"] / small["seconds"], 2),
    }


def restart(work: Path, count: int) -> dict[str, Any]:
    """A longer labelling on Ray, against the bare loop; and what is left of it when nine of ten label files are there."""
    write_images(work / "images", count)
    run = Run(str(work / "run"), local(), echo=lambda line: None)
    images = run("images", ingest, ImagesConfig(labeled=None, unlabeled=f"{work}/images/*.parquet"))
    model = a_teacher(run, PIXELS)
    out = Folder(str(work / "labels"))
    from ssl_ray.cluster import ensure_ray

    ensure_ray(local())
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        predict(out, local(), images=images, model=model, splits=["unlabeled"], budget=0.0)
        seconds.append(round(time.perf_counter() - begin, 1))
        for file in list_label_files(out / "labels")[::10]:
            (out / "labels").remove(file.name)
    (work / "bare").mkdir()
    begin = time.perf_counter()
    in_a_process(bare, sorted((work / "images").iterdir()), model.path, work / "bare")
    bare_s = round(time.perf_counter() - begin, 1)
    return {
        "images": count,
        "whole_s": seconds[0],
        "restart_s": seconds[1],
        "share": round(seconds[1] / seconds[0], 3),
        "bare_s": bare_s,
        "ratio_to_bare": round(bare_s / seconds[0], 3),
    }


PLANNING = """
import sys, time
from pathlib import Path
from ssl_ray.artifacts import Shard
from ssl_ray.label_files import LabelFile, list_label_files
from ssl_ray.data.ranges import plan
from ssl_ray.storage import Folder

folder = Path(sys.argv[1])
shards = [Shard(number, "unlabeled", "folder", 2000, "") for number in range(50_050)]
for number in range(50_000):
    for start in (0, 1000):
        (folder / LabelFile(number, start, start + 1000).name).touch()
begin = time.perf_counter()
files = list_label_files(Folder(str(folder)))
middle = time.perf_counter()
assert len(plan(shards, files, 2048)) == 50
end = time.perf_counter()
# Not getrusage: that begins with what the parent held when this process was forked.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(middle - begin, end - middle, int(peak.split()[1]) / 1024)
"""


def planning(work: Path) -> dict[str, Any]:
    """A listing of 100,000 label files, subtracted from the shards; a program of its own, for its memory."""
    command = [sys.executable, "-c", PLANNING, str(work)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    listing_s, plan_s, peak = (float(word) for word in done.stdout.split())
    return {"files": 100_000, "listing_s": round(listing_s, 2), "plan_s": round(plan_s, 2), "peak_mib": round(peak)}


def selection(work: Path) -> dict[str, Any]:
    """Ten million labels of 100 classes in 2,048 a file: our selection stage against DuckDB's counts, turn by turn."""
    import duckdb

    draw, classes, per_file = np.random.default_rng(0), 100, 2048
    out = Folder(str(work / "l"))
    total = 0
    for shard in range(10_000_000 // per_file + 1):
        count = min(per_file, 10_000_000 - total)
        confidence = draw.beta(3, 1, count).astype(np.float32)
        label = draw.integers(0, classes, count).astype(np.int32)
        table = pa.table(
            {
                "shard": np.full(count, shard, np.int32),
                "row": np.arange(count, dtype=np.int32),
                "confidence": confidence,
                "label": label,
            }
        )
        (out / "labels").write_table(LabelFile(shard, 0, count).name, table)
        total += count
    Record("PseudoLabels", "label", "l", "f", {"split": "unlabeled"}, {}, {"classes": [str(i) for i in range(classes)]}).save(
        out
    )
    query = f"SELECT label, CAST(floor(confidence * 100) AS INT), count(*) FROM '{out.path}/labels/*.parquet' GROUP BY ALL"
    ours, theirs = [], []
    for turn in range(3):
        run = Run(str(work / f"run-{turn}"), inline(), echo=lambda line: None)
        begin = time.perf_counter()
        chosen = run("chosen", select, SelectionConfig(), labels=PseudoLabels(out.path))
        ours.append(round(time.perf_counter() - begin, 2))
        begin = time.perf_counter()
        rows = duckdb.connect(config={"threads": usable_cores()}).execute(query).fetchall()
        theirs.append(round(time.perf_counter() - begin, 2))
        assert sum(row[2] for row in rows) == sum(chosen.results["before"]) == 10_000_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = float(np.median(np.array(ours) / np.array(theirs)))
    return {"labels": total, "ours_s": ours, "duckdb_s": theirs, "ratio": round(ratio, 2), "peak_mib": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=["growth", "restart", "planning", "selection"])
    parser.add_argument("--restart-images", type=int, default=160_000)
    options = parser.parse_args()
    found = {key: value for key, value in (load("label_scale") or {}).items() if key != "conditions"}
    for part in options.parts:
        with tempfile.TemporaryDirectory() as base:
            if part == "restart":
                found[part] = restart(Path(base), options.restart_images)
            else:
                found[part] = {"growth": growth, "planning": planning, "selection": selection}[part](Path(base))
        print(part, found[part], flush=True)
        save("label_scale", found)


if __name__ == "__main__":
    main()
