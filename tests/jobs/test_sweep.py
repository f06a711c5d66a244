"""`jobs/sweep.py`: trials that share, fail, are stopped, killed and searched for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ssl_ray.cli import run_job
from ssl_ray.config import override
from ssl_ray.grids import Trial
from ssl_ray.pipelines import sweep as job
from ssl_ray.recipes.noisy_student import recipe
from ssl_ray.recipes.sweep import RECIPES, WORDS, SweepRecipe
from ssl_ray.scale import Scale, inline
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest
from ssl_ray.tune.sweep import FUNCTIONS, Sweep, planned
from tests.teachers import make_model

ROOT = Path(__file__).parents[2]


def sweep(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jobs/sweep.py", *words])
    return run_job(job.main)


def trials(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(root.glob("trials/*/trial.json"))}


def records(root: Path) -> dict[str, float]:
    return {str(path.parent): path.stat().st_mtime_ns for path in root.glob("stages/**/_record.json")}


@pytest.mark.usefixtures("ray_session")
class TestSharing:
    def test_what_trials_have_in_common_is_computed_once_and_one_that_fails_ends_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "root"
        words = ["noisy_student:tiny", "--root", str(root), "--grid", "student.optim.lr=0.05,0.1"]
        words += ["--grid", "health.min_confidence=0.99,0.0"]
        assert sweep(monkeypatch, *words) == 0
        said = capsys.readouterr().out
        assert "4 trials of noisy_student tiny" in said
        assert "s of different work" in said
        assert len(list(root.glob("stages/teacher/*/_record.json"))) == 1
        assert len(list(root.glob("stages/1/labels/*/_record.json"))) == 1
        assert len(list(root.glob("stages/1/student/*/_record.json"))) == 2
        found = trials(root)
        assert len(found) == 4
        failed = {name for name, trial in found.items() if trial["error"]}
        assert failed == {f"student.optim.lr={rate},health.min_confidence=0.99,seed=0" for rate in ("0.05", "0.1")}
        assert {found[name]["exit_code"] for name in failed} == {3}
        assert sum("teacher" in trial["computed"] for trial in found.values()) == 1
        teachers = {row["value"] for trial in found.values() for row in trial["scores"]
                    if (row["model"], row["split"], row["metric"]) == ("teacher", "test", "top1")}  # fmt: skip
        assert len(teachers) == 1
        for name in failed:
            assert f"failed: {name}" in said

        table = pq.read_table(root / "results/results.parquet").to_pandas()
        assert set(table["axis_student.optim.lr"]) == {0.05, 0.1}
        assert set(table["role"]) == {"teacher", "student-1"}
        page = (root / "report/report.html").read_text()
        assert "student.optim.lr=0.05, health.min_confidence=0: student-1" in page
        assert page.count("<svg") == 2
        cost = table[table["split"] == "test"].groupby("role")["seconds"].mean()
        assert 0 < cost["teacher"] < cost["student-1"]  # which stands on its labels, too
        used = re.search(r"load_model\('(.+)'\)", said)
        assert used is not None
        assert Path(used.group(1)).parent == root / "stages/1/student"
        assert (Path(used.group(1)) / "model.safetensors").exists()
        assert "Trials that failed" in page

        before = records(root)
        assert sweep(monkeypatch, *words) == 0  # tries the failed ones again, and computes nothing
        again = records(root)
        assert {path for path in again if again[path] != before.get(path)} == set()
        assert "2 of 4 trials are finished" in capsys.readouterr().out
        # All failed: the code is theirs. A stage that is thrown away is computed anew, with what stands on it.
        words = ["noisy_student:tiny", "--root", str(root), "--grid", "health.min_confidence=0.99", "--rerun", "1/labels"]
        assert sweep(monkeypatch, *words) == 3
        assert "all 1 trials failed" in capsys.readouterr().err
        now = records(root)
        assert {path.split("stages/")[1].rsplit("/", 1)[0] for path in now if now[path] != before.get(path)} >= {"1/labels"}
        assert {path for path in now if "/teacher/" in path and now[path] != before[path]} == set()

    @pytest.mark.slow
    def test_the_labels_of_a_smaller_fraction_are_among_those_of_a_larger_one_and_seeds_draw_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "root"
        words = ["noisy_student:tiny", "--grid", "label_fraction=0.2,1.0", "--seeds", "2", "--root", str(root)]
        assert sweep(monkeypatch, *words) == 0
        found = trials(root)
        assert {trial["labels"] for trial in found.values()} == {20.0, 100.0}

        def labels(name: str) -> set[str]:
            mark = found[name]["stages"]["teacher"]["fingerprint"]
            return set(pq.read_table(root / "stages/teacher" / mark / "labels.parquet")["image_id"].to_pylist())

        for seed in (0, 1):
            small, large = (labels(f"label_fraction={share},seed={seed}") for share in ("0.2", "1"))
            assert len(small) == 20
            assert len(large) == 100
            assert small < large
        assert labels("label_fraction=0.2,seed=0") != labels("label_fraction=0.2,seed=1")
        assert len(list(root.glob("stages/images/*/_record.json"))) == 1  # tested on the same images
        assert "With 20 labels student-1" in capsys.readouterr().out

    @pytest.mark.slow
    def test_asha_stops_what_falls_behind_and_a_tracker_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "root"
        words = ["noisy_student:tiny", "--root", str(root), "--grid", "teacher.optim.lr=0.3,1e-6", "--asha"]
        assert sweep(monkeypatch, *words, "--set", "images.val_images=200", "--tracker", "tensorboard") == 0
        found = trials(root)
        assert not found["teacher.optim.lr=0.3,seed=0"]["stopped"]
        late = found["teacher.optim.lr=1e-06,seed=0"]
        assert late["stopped"]
        assert "1/student" not in late["stages"]
        assert "stopped early" in capsys.readouterr().out
        assert list(root.glob("tune/**/events.out.tfevents*"))

    @pytest.mark.slow
    def test_a_search_goes_on_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "root"
        words = ["noisy_student:tiny", "--root", str(root), "--search", "teacher.optim.lr=loguniform(0.01,0.5)"]
        words += ["--set", "images.val_images=200", "--searcher", "optuna"]
        assert sweep(monkeypatch, *words, "--trials", "1") == 0
        first = trials(root)
        assert sweep(monkeypatch, *words, "--trials", "2") == 0
        assert len(trials(root)) == 2
        assert set(first) < set(trials(root))
        capsys.readouterr()
        assert sweep(monkeypatch, *words, "--trials", "2") == 0
        said = capsys.readouterr().out
        assert "2 of 2 trials are finished" in said
        assert "> teacher" not in said
        # Other ranges on the same root: Optuna would refuse points outside them.
        words[4] = "teacher.optim.lr=loguniform(0.6,0.9)"
        assert sweep(monkeypatch, *words, "--trials", "1") == 0
        assert len(trials(root)) == 3

    @pytest.mark.slow
    def test_large_trials_use_workers_of_their_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / "root"
        assert sweep(monkeypatch, "noisy_student:tiny", "--grid", "labels=100", "--root", str(root), "--scale", "local") == 0
        trial = next(iter(trials(root).values()))
        assert trial["error"] is None
        record = json.loads(next(root.glob("stages/teacher/*/_record.json")).read_text())
        assert record["results"]["start_s"] > 1  # a Train run inside the trial


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "root"
    words = ["noisy_student:tiny", "--grid", "labels=20,100", "--root", str(root)]
    command = [sys.executable, str(ROOT / "jobs/sweep.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        until = time.monotonic() + 200
        while not list(root.glob("trials/*/trial.json")):
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    done = {str(path): path.stat().st_mtime_ns for path in root.glob("trials/*/trial.json")}
    assert len(done) == 1
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "1 of 2 trials are finished" in said.stdout
    assert len(trials(root)) == 2
    assert all(Path(path).stat().st_mtime_ns == when for path, when in done.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "there is no sweep 'nothing'"),
        (["noisy_student:tiny"], "the sweep has no axis"),
        (["noisy_student:tiny", "--grid", "foo.bar=1"], "unknown setting 'foo.bar'"),
        (["noisy_student:tiny", "--grid", "foo.bar=1"], "words of this job: labels, label_fraction"),
        (["noisy_student:tiny", "--grid", "labels="], "has no values"),
        (["noisy_student:tiny", "--grid", "labels=20", "--seeds", "0"], "seeds: Input should be greater than or equal to 1"),
        (["noisy_student:tiny", "--grid", "labels=20,30", "--seeds", "51"], "102 trials, more than 100; say --yes"),
        (["noisy_student:tiny", "--grid", "generations=0,1"], "generations=0,seed=0"),
        (["noisy_student:tiny", "--grid", "labels=20", "--asha"], "images.val_images"),
        (["noisy_student:tiny", "--search", "student.ratio=integer(1,2)", "--searcher", "optuna", "--seeds", "2"], "--searcher random"),
        (["noisy_student:tiny", "--grid", "labels=20", "--rerun", "teacher"], "there is no such stage"),
        (["evaluate:probes", "--grid", "probe.seeds=1,2"], "give --model"),
        (["noisy_student:tiny", "--grid", "seed=0,1"], "say --seeds N instead of an axis"),
        (["self_training:tiny", "--grid", "joint=true", "--set", "images.seed=3"], "--set seed=N begins with another seed"),
        (["noisy_student:tiny", "--grid", "labels=20", "--trials", "3"], "--trials counts the points of a --search"),
        (["noisy_student:tiny", "--grid", "labels=20", "--tracker", "mlflow"], "needs the package mlflow"),
        (["noisy_student:tiny", "--grid", "labl_fraction=0.5"], "there is no axis 'labl_fraction'; did you mean label_fraction?"),
        (["noisy_student:tiny", "--grid", "images.labels=50", "--grid", "foo.bar=1"], "unknown setting 'foo.bar'"),
        (["noisy_student:tiny", "--grid", "labels=20", "--labeled", "nowhere/"], "nowhere/ does not exist"),
        (["hpt:tiny", "--grid", "base.batch=16", "--set", "targets.digits.images.test=nowhere/"], "nowhere/ does not exist"),
        (["noisy_student:tiny", "--grid", "labels=20", "--asha", "--seeds", "2"], "--asha stops trials that fall behind"),
        (["hpt:tiny", "--grid", "pretrain.batch=16,32"], "did you mean one of base.batch"),
        (["hpt:tiny", "--grid", "base.batch=16,32", "--asha", "--set", "targets.digits.images.val_images=0"], "images.val_images"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_line_and_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, *words, "--root", str(tmp_path / "root")) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_no_cluster_holds_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    words = ["noisy_student:tiny", "--grid", "labels=20", "--root", str(tmp_path / "root")]
    assert sweep(monkeypatch, *words, "--set", "scale.train_cpus=99") == 2
    assert "asks for 99 CPU" in capsys.readouterr().err
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("name", RECIPES)
def test_named_sweeps_can_be_planned(name: str, tmp_path: Path) -> None:
    """Every path of every recipe is known, and every combination fits."""
    from ssl_ray.grids import product

    named = RECIPES[name]()
    swept = Sweep(named, [], str(tmp_path), inline(), job.load)
    found = product(named.axes, named.seed_numbers)
    stages = planned(swept, found)
    assert len(stages["report"]) == len(found)
    assert len(stages["images"]) <= named.seeds
    assert named.job in WORDS


def test_trials_of_one_machine_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "device_count", lambda: 2)
    one = Scale(train_workers=0, train_gpus=1.0, trials=8)
    assert job.side_by_side(one).train_gpus == 0.25
    assert job.side_by_side(override(one, {"trials": 1})).train_gpus == 1.0
    assert job.side_by_side(override(one, {"train_gpus": 0.1})).train_gpus == 0.1
    monkeypatch.setattr(job, "device_count", lambda: 0)
    assert job.side_by_side(override(one, {"train_gpus": 0.0})).train_gpus == 0.0


def test_arms_of_one_trial_keep_their_names() -> None:
    from ssl_ray.tune.results import as_column, roles_of

    role = WORDS["self_training"].role
    one = {"point": {"augmentation": "S1"}, "scores": [{"model": "random-S1-20%"}, {"model": "random-S1-20%-student"}]}
    assert list(roles_of(one, role).values()) == ["teacher", "student"]
    models = ["random-S1-20%", "random-S1-20%-student", "pretrained-S1-20%", "pretrained-S1-20%-student"]
    several = {"point": {"augmentation": "S1"}, "scores": [{"model": model} for model in models]}
    assert list(roles_of(several, role).values()) == ["random", "random-student", "pretrained", "pretrained-student"]
    assert as_column(1, {float}) == 1.0
    assert as_column("sync", {str, float}) == "sync"
    assert as_column(16, {str, float}) == "16"
    assert as_column([1, 2], {list}) == "0:1,1:2"


def test_the_first_seed_is_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["noisy_student:tiny", "--grid", "labels=20", "--root", str(tmp_path / "root"), "--plan", "stages"]
    assert sweep(monkeypatch, *words, "--set", "seed=7", "--seeds", "2") == 0
    assert "2 trials" in capsys.readouterr().out


def test_trials_of_their_own_workers_are_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_ray.scale import Scale
    from ssl_ray.tune import trials as shell

    monkeypatch.setattr(shell, "capacity", lambda: {"CPU": 64.0, "GPU": 5.0})
    assert shell.at_once(Scale(train_workers=2, train_gpus=1, label_actors_max=1)) == 2
    assert shell.at_once(Scale(train_workers=8, train_gpus=1)) == 1
    assert shell.at_once(Scale(train_workers=1, train_cpus=4)) == 16


def test_images_that_are_listed_need_not_be_there_any_more(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, rest = make_folder("mine", {"cat": 12, "dog": 12}), make_folder("rest", {"": 10})
    root = tmp_path / "root"
    given = {"labeled": f"{source}/", "unlabeled": f"{rest}/", "labels": None, "test_images": 4}
    swept = Run(str(root), inline(), shared=True, echo=lambda line: None)
    swept("images", ingest, override(recipe("tiny").images, given))
    source.rename(tmp_path / "elsewhere")
    words = ["noisy_student:tiny", "--root", str(root), "--grid", "student.optim.lr=0.1", "--plan", "stages"]
    words += ["--labeled", f"{source}/", "--unlabeled", f"{rest}/", "--set", "images.test_images=4"]
    assert sweep(monkeypatch, *words, "--set", "images.labels=null") == 0, capsys.readouterr().err
    assert sweep(monkeypatch, *words, "--set", "images.labels=3") == 2
    assert "does not exist" in capsys.readouterr().err


def test_every_job_has_what_a_sweep_asks_for() -> None:
    for name in WORDS:
        module = job.load(name)
        assert module.base("tiny" if name != "evaluate" else "demo") is not None
        assert callable(getattr(module, FUNCTIONS.get(name, name)))


def test_another_model_on_the_same_root_is_another_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate` over two checkpoints: neither shows the other's scores. And test images choose nothing."""
    models = [make_model(tmp_path / f"m{seed}", [str(n) for n in range(10)], seed) for seed in (0, 1)]
    trial = Trial({"probe.seeds": 1}, 0)
    marks = set()
    for model in models:
        swept = Sweep(SweepRecipe(job="evaluate", recipe="probes", model=model.path, grid={"probe.seeds": (1, 2)}), [], str(tmp_path / "root"),
                      inline(), job.load)  # fmt: skip
        stages = planned(swept, [trial])
        marks.add((swept.identity(trial), *stages["features"], *stages["probe"]))
    assert len({mark[0] for mark in marks}) == len({mark[1] for mark in marks}) == len({mark[2] for mark in marks}) == 2
    words = ["evaluate:probes", "--model", models[0].path, "--root", str(tmp_path / "root"), "--grid", "probe.seeds=1,2"]
    assert sweep(monkeypatch, *words, "--asha") == 2
    assert "scores test images alone" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_shows_stages_that_the_tried_trial_lacks_and_what_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    words = ["noisy_student:tiny", "--root", str(root), "--grid", "generations=1,2"]
    assert sweep(monkeypatch, *words, "--plan") == 0
    said = capsys.readouterr().out
    assert "is tried, and stands for the others" in said
    assert "2/student" in said
    assert "is not a stage of the trial that was tried" in " ".join(said.split())
    assert not root.exists()

    assert sweep(monkeypatch, *words, "--plan", "stages", "--rerun", "images") == 2
    assert "images" in capsys.readouterr().err  # was never run
    swept = Run(str(root), inline(), shared=True, echo=lambda line: None)
    swept("images", ingest, recipe("tiny").images)
    assert sweep(monkeypatch, *words, "--plan", "stages", "--rerun", "images") == 0
    assert len(records(root)) == 1
    assert sweep(monkeypatch, *words, "--plan", "stages", "--rerun", "image") == 2
    assert "name one of images" in capsys.readouterr().err


def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, "figure1", "--root", str(tmp_path / "root"), "--plan", "stages") == 0
    assert not (tmp_path / "root").exists()
