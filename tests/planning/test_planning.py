"""Plans: what is counted, what is extrapolated, and that nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ray.cli import run_job
from ssl_ray.config import override
from ssl_ray.data.sources import list_source
from ssl_ray.data.sources.limit import FILES, at_most
from ssl_ray.data.sources.parquet import ColumnsConfig
from ssl_ray.errors import ConfigError
from ssl_ray.pipelines.noisy_student import main, noisy_student
from ssl_ray.planning.busy import Others
from ssl_ray.planning.estimate import Estimate, lend
from ssl_ray.planning.machines import Cluster, Machine, described, prices
from ssl_ray.planning.measure import Planner, Sampled, _step_of
from ssl_ray.planning.table import money, on_cluster, on_this_machine, size
from ssl_ray.recipes.noisy_student import recipe
from ssl_ray.scale import inline, local
from ssl_ray.stage import Run


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Estimate], Path]:
    """The stages of `tiny` with longer trainings, as a plan sees them."""
    root = tmp_path_factory.mktemp("plan") / "root"
    chosen = override(recipe("tiny"), {"teacher.schedule.length": 5000, "student.schedule.length": 700})
    with Planner(inline()) as planner:
        noisy_student(Run(str(root), inline(), plan=True, echo=lambda line: None, measure=planner), chosen)
    return {item.stage: item for item in planner.estimates}, root


def test_everything_is_counted_and_nothing_is_written(planned: tuple[dict[str, Estimate], Path]) -> None:
    found, root = planned
    assert not root.exists()
    names = ["images", "teacher", "scores/teacher", "1/labels", "1/chosen", "1/student", "scores/student-1", "report"]
    assert list(found) == names
    assert found["teacher"].images == 5000 * 64
    assert found["teacher"].loads == found["teacher"].fresh == 100  # they fit into memory: read and decoded once
    assert found["1/student"].loads <= 100 + 4700
    assert found["1/labels"].images == 4700
    assert found["1/student"].images == 700 * (64 + 3 * 64)
    assert found["scores/teacher"].images == 200
    assert all(item.model_s > 0 for item in found.values() if item.images)
    assert 4700 * 12 <= found["1/labels"].written <= 4700 * 75  # ten half floats, an id, compressed: some 30 bytes
    assert not any(item.note for item in found.values())


def test_the_whole_takes_as_long_as_its_parts(planned: tuple[dict[str, Estimate], Path]) -> None:
    """Closed form: twice the images, twice the time, but for what is fixed."""
    found, _ = planned
    item = found["1/labels"]
    before, fixed, images = item.seconds, item.fixed_s, item.images
    more = Estimate(
        "labels", "label", images=2 * images, loads=2 * images, model_s=item.model_s, load_s=item.load_s, fixed_s=fixed
    )
    assert more.seconds - fixed == pytest.approx(2 * (before - fixed))
    again = Estimate("labels", "label", images=images, fresh=images, model_s=item.model_s, fixed_s=fixed)
    once = again.seconds
    again.repeat(3)
    assert again.seconds == pytest.approx(3 * once)
    on_ray = {part.estimate.stage: part.seconds for part in on_this_machine(list(found.values()), local())}
    plain = {part.estimate.stage: part.seconds for part in on_this_machine(list(found.values()), inline())}
    assert on_ray["teacher"] > plain["teacher"] + 10  # workers start
    assert on_ray["report"] == plain["report"]


def test_what_is_alike_has_the_rate_of_the_fastest_sample() -> None:
    slow = Estimate("1/student", "train", images=100, model_s=0.04, wait_s=0.01, alike="a")
    fast = Estimate("2/student", "train", images=300, model_s=0.015, wait_s=0.002, alike="a")
    other, label = Estimate("teacher", "train", model_s=0.03, alike="b"), Estimate("labels", "label", model_s=0.5)
    lend([slow, fast, other, label])
    assert (slow.model_s, slow.wait_s, slow.images) == (0.015, 0.002, 100)
    assert (fast.model_s, other.model_s, label.model_s) == (0.015, 0.03, 0.5)


def test_students_of_two_generations_are_alike(planned: tuple[dict[str, Estimate], Path]) -> None:
    from types import SimpleNamespace

    found, _ = planned
    assert found["teacher"].alike != found["1/student"].alike
    assert not found["1/labels"].alike
    one = recipe("demo").student
    images, others = (SimpleNamespace(record=SimpleNamespace(fingerprint=mark)) for mark in "ab")
    again = override(one, {"seed": 7, "schedule.length": 11})
    assert _step_of(one, images) == _step_of(again, images)
    assert _step_of(one, images) != _step_of(one, others)  # larger pictures take longer to decode
    assert _step_of(one, images) != _step_of(override(one, {"net.width": 8}), images)


def test_a_described_cluster_is_arithmetic() -> None:
    item = Estimate("labels", "label", images=10_000_000, fresh=10_000_000, model_s=1e-2, decode_s=1e-3, batch=512)
    gpu = Machine(cpus=8, gpus=1, tflops=100, usd_per_hour=1.0, usd_per_hour_spot=0.4)
    one = on_cluster([item], Cluster(name="one", nodes=1, machine=gpu), False, speed=1e12)[0]
    # A hundred times this machine's matrices, halved: 2e-4 s an image; eight cores decode one in 1.25e-4 s.
    assert one.images_per_s == pytest.approx(5000)
    assert one.bound == "the model"
    four = on_cluster([item], Cluster(name="four", nodes=4, machine=gpu), False, speed=1e12)[0]
    assert four.images_per_s == pytest.approx(4 * 0.9 * 5000)
    fast = Machine(cpus=8, gpus=8, tflops=1000, usd_per_hour=0.0)
    starved = on_cluster([item], Cluster(name="fast", nodes=1, machine=fast), False, speed=1e12)[0]
    assert starved.bound == "reading and decoding"
    assert starved.images_per_s == pytest.approx(8 * 0.9 / 1e-3)
    # Eight alike on four machines: side by side, two after each other; four machines are no dearer than one, and faster.
    alike = Estimate("labels", "label", images=10_000_000, fresh=10_000_000, model_s=1e-2, decode_s=1e-3, batch=512)
    alike.repeat(8)
    eight = {n: on_cluster([alike], Cluster(name="n", nodes=n, machine=gpu), False, speed=1e12)[0] for n in (1, 4)}
    assert eight[1].seconds == pytest.approx(8 * one.seconds)
    assert eight[4].seconds == pytest.approx(2 * one.seconds)
    assert eight[4].images_per_s == pytest.approx(4 * one.images_per_s)
    small = Estimate("teacher", "train", images=10**9, fresh=1, model_s=1e-7, decode_s=1e-3, batch=64)
    launched = on_cluster([small], Cluster(name="one", nodes=1, machine=gpu), False, speed=1e12)[0]
    four = on_cluster([small], Cluster(name="four", nodes=4, machine=gpu), False, speed=1e12)[0]
    assert four.images_per_s == pytest.approx(64 / 0.005, rel=0.01)  # the batch is that of all workers
    assert launched.images_per_s == pytest.approx(64 / 0.005, rel=0.01)  # no GPU steps faster than its kernels are launched
    assert money(7200, Cluster(name="four", nodes=4, machine=gpu)) == "$8.00, $3.20 on spot"
    assert size(2.5e9) == "2.5 GB"


def test_the_table_of_machines_can_be_edited(tmp_path: Path) -> None:
    table = prices()
    assert described("4xg5.2xlarge", table).gpus == 4
    assert described("g5.2xlarge", table).nodes == 1
    for text, said in (("4xg9", "no machine 'g9'"), ("0xg5.xlarge", "one node or more")):
        with pytest.raises(ConfigError, match=said):
            described(text, table)
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"machines": {"desk": {"cpus": 64, "gpus": 2, "tflops": 50, "usd_per_hour": 0.0}}}))
    assert described("3xdesk", prices(str(mine))).cpus == 192
    for text, said in (("{", "is no JSON"), ('{"machines": {"desk": {"cpus": 0}}}', "machines.desk.cpus"),
                       ('{"machines": {"desk": {"cpus": 8, "gpus": 1, "usd_per_hour": 1}}}', "needs their tflops")):  # fmt: skip
        mine.write_text(text)
        with pytest.raises(ConfigError, match=said):
            prices(str(mine))
    with pytest.raises(ConfigError, match="--prices"):
        prices(str(tmp_path / "none.json"))


def test_a_large_heap_is_not_listed_whole(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = str(make_folder("heap", {"a": 30, "b": 30}))
    with at_most(10) as cut:
        some = list_source(folder, ColumnsConfig(), labeled=False)
    assert 10 <= len(some) < 60
    assert list(cut.values()) == [float("inf")]
    assert len(list_source(folder, ColumnsConfig(), labeled=False)) == 60
    with at_most(10) as cut:  # labels must be whole
        assert len(list_source(folder, ColumnsConfig(), labeled=True)) == 60
    for number in range(2 * FILES):
        pq.write_table(pa.table({"image": [b"x"] * 10}), tmp_path / f"{number}.parquet")
    with at_most(10) as cut:
        some = list_source(f"{tmp_path}/*.parquet", ColumnsConfig(), labeled=False)
    assert len(some) == 10 * FILES
    assert list(cut.values()) == [2.0]


def test_a_sample_of_a_corpus(digits: object) -> None:
    some = Sampled(digits, 150)  # type: ignore[arg-type]
    assert {split: some.num_images(split) for split in ("train", "test", "unlabeled")} == {
        "train": 100, "test": 150, "unlabeled": 150,
    }  # fmt: skip
    assert len(some.column("test", "label")) == 150


@pytest.mark.slow
def test_a_plan_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["jobs/noisy_student.py", "tiny", "--root", str(tmp_path / "root"), "--scale", "inline", "--plan"]
    monkeypatch.setattr(sys, "argv", [*words, "--on", "2xg5.xlarge", "--heap", "1000000"])
    assert run_job(main) == 0
    said = capsys.readouterr().out
    assert "1/labels" in said
    assert "1,000,000" in said
    assert "on spot" in said
    assert "Its GPUs were not measured" in said
    assert not (tmp_path / "root").exists()
    for more, what in (
        ([*words, "--on", "2xtoaster"], "no machine 'toaster'"),
        ([*words, "--heap", "-5"], "--heap -5"),
        ([*words[:-1], "--on", "2xg5.xlarge"], "--on belongs to --plan"),
    ):
        monkeypatch.setattr(sys, "argv", more)
        assert run_job(main) == 2
        assert what in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the machine's time is counted on Linux alone")
def test_another_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.2)
            others = Others()
            time.sleep(1.5)
            cores = others.cores()
        finally:
            other.kill()
    assert cores > 0.3


def test_our_own_work_is_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds on two cores: 20 s of work, 19 or 9 of them ours."""
    moments = iter([(100.0, 50.0, 7.0), (110.0, 70.0, 26.0), (100.0, 50.0, 7.0), (110.0, 70.0, 16.0)])
    monkeypatch.setattr("ssl_ray.planning.busy._counted", lambda: next(moments))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert Others().warning() is None
    assert "kept 1.1 of this machine's 2 cores busy" in (Others().warning() or "")
