"""The job, from its command line: end to end, again, killed, wrong, and submitted to a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ssl_ray.pipelines.noisy_student as job
from ssl_ray import load_model
from ssl_ray.artifacts import Selection
from ssl_ray.cli import run_job
from ssl_ray.config import known_paths, override, parse_assignment
from ssl_ray.recipes.noisy_student import RECIPES, NoisyStudentRecipe, demo, recipe, tiny
from ssl_ray.scale import inline, local
from ssl_ray.stage import Run
from tests.faults.harness import pids

REPO = Path(__file__).parent.parent.parent
FAST = ["--set", "teacher.schedule.length=8", "--set", "student.schedule.length=8"]

FULL = [*FAST, "--set", "images.val_images=100", "--set", "resolution_fix.freeze=3",
        "--set", "resolution_fix.schedule.length=4", "--set", "resolution_fix.preprocess.size=32"]  # fmt: skip
"""What the run that most tests look at is made with: a validation split and a resolution fix."""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jobs/noisy_student.py", *arguments])
    return run_job(job.main)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local Ray head of its own, on free ports; its dashboard's address."""

    probes = [socket.socket() for _ in range(4)]  # open at the same time, so that no port comes twice
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    port, dashboard, client, agent = (int(probe.getsockname()[1]) for probe in probes)
    for probe in probes:
        probe.close()
    folder = Path("/tmp") / f"ssl-ray-head-{os.getpid()}"
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = str(Path(sys.executable).parent / "ray")
    subprocess.run(
        [ray, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=4",
         "--object-store-memory=200000000", f"--temp-dir={folder}", f"--ray-client-server-port={client}",
         f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"],
        check=True, capture_output=True, env=environment,
    )  # fmt: skip
    yield f"http://127.0.0.1:{dashboard}"
    # `ray stop` would stop every Ray of the host; only processes of this head are ours.
    for name in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in name.read_bytes():
                os.kill(int(name.parent.name), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def submitted(head: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`ray job submit` of the tiny recipe with a validation split and a resolution fix: its root, and what it printed."""
    root = tmp_path_factory.mktemp("finished") / "root"
    ray = str(Path(sys.executable).parent / "ray")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    answer = subprocess.run(
        [ray, "job", "submit", "--working-dir", ".", "--", sys.executable, "jobs/noisy_student.py", "tiny", "--root", str(root), *FULL],
        cwd=REPO, capture_output=True, text=True, timeout=400, check=False,
        env=environment | {"RAY_API_SERVER_ADDRESS": head, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return root, answer.stdout


@pytest.fixture(scope="module")
def finished(submitted: tuple[Path, str]) -> Path:
    return submitted[0]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the run that is submitted elsewhere, made in this process without Ray."""
    root = tmp_path_factory.mktemp("reported") / "root"
    settings = dict(parse_assignment(word) for word in FULL if word != "--set")
    job.noisy_student(Run(str(root), inline(), echo=lambda line: None), override(tiny(), settings))
    return root


@pytest.mark.slow
class TestEndToEnd:
    def test_a_submitted_job_prints_its_scores(self, submitted: tuple[Path, str]) -> None:
        root, output = submitted
        assert "top-1 on test" in output
        assert f"report: {root}/report/report.html" in output
        assert (root / "report/report.html").exists()

    def test_scores_are_written_in_the_promised_form(self, finished: Path) -> None:
        rows = json.loads((finished / "scores.json").read_text())
        assert {row["model"] for row in rows} == {"teacher", "student-1"}
        assert {row["split"] for row in rows} == {"val", "test"}
        for row in rows:
            assert row.keys() == {"model", "seed", "split", "metric", "value", "n"}
            assert 0 <= row["value"] <= 1
        assert {row["n"] for row in rows if row["split"] == "test"} == {200}

    def test_every_stage_has_its_record(self, finished: Path) -> None:
        stages = {str(path.parent.relative_to(finished)) for path in finished.rglob("_record.json")}
        assert stages == {
            "images", "teacher", "scores/teacher", "1/labels", "1/chosen", "1/low-resolution", "1/student", "scores/student-1", "report",
        }  # fmt: skip
        record = json.loads((finished / "1/labels/_record.json").read_text())
        assert record["results"]["images"] == 4600
        assert record["results"]["images_per_s"] > 0

    def test_a_second_call_recomputes_nothing_and_needs_no_ray(self, finished: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("_record.json")}
        settings = json.loads((finished / "1/student/_record.json").read_text())["config"]
        assert settings["preprocess"]["size"] == 32
        code = (
            "import sys, ssl_ray.pipelines.noisy_student as job; from ssl_ray.cli import run_job; code = run_job(job.main);"
            "assert 'ray' not in sys.modules, 'ray was imported'; sys.exit(code)"
        )
        arguments = ["tiny", "--root", str(finished), *FULL]
        answer = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPO, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        assert not re.search(r"^> ", answer.stdout, re.MULTILINE)  # a stage that starts
        assert "report:" in answer.stdout
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("_record.json")} == before

    def test_a_changed_setting_is_named(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert (
            call(
                monkeypatch,
                "tiny",
                "--root",
                str(finished),
                "--set",
                "teacher.schedule.length=9",
                "--set",
                "images.val_images=100",
            )
            == 2
        )
        line = capsys.readouterr().err.strip()
        assert "config.schedule.length: 8.0 -> 9.0" in line
        assert "--rerun teacher" in line
        assert "\n" not in line

    def test_the_model_loads_with_the_three_lines(self, finished: Path, tmp_path: Path) -> None:
        from PIL import Image

        model = load_model(str(finished / "1/student"))
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "image.png")
        [(label, confidence)] = model.predict(tmp_path / "image.png")
        assert label in model.classes
        assert 0 < confidence <= 1

    def test_no_test_image_is_trained_on_or_selected(self, finished: Path) -> None:
        from ssl_ray.artifacts import Corpus, PseudoLabels

        images, labels = Corpus(str(finished / "images")), PseudoLabels(str(finished / "1/labels"))
        test = {i for shard in images.shards("test") for i in images.rows(shard.shard)["image_id"].to_pylist()}
        assert not test & set(labels.table(["image_id"])["image_id"].to_pylist())
        assert Selection(str(finished / "1/chosen")).results["before"]


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class TestReport:
    def test_one_file_without_network(self, reported: Path) -> None:
        page = (reported / "report/report.html").read_text()
        assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "nothing is loaded from outside"
        assert "<script" not in page
        for part in ("scores", "accuracy", "precision", "generation-1", "stages", "configuration"):
            assert f'id="{part}"' in page
        assert "mathdefault" not in page, "math is off, so ticks must not need it"
        assert page.count("data:image/png") >= 24

    def test_it_opens_in_a_browser(self, reported: Path, tmp_path: Path) -> None:
        browser = chromium()
        if browser is None:
            assert os.environ.get("SSL_RAY_REQUIRE_BROWSER") != "1", "CI has a browser"
            pytest.skip("no Chromium on this machine")
        picture = tmp_path / "report.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                   "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
                   "--hide-scrollbars", "--window-size=1200,2400", "--virtual-time-budget=3000"]  # fmt: skip
        url = (reported / "report/report.html").as_uri()
        subprocess.run([*command, f"--screenshot={picture}", url], check=True, capture_output=True, timeout=120)
        from PIL import Image

        pixels = np.asarray(Image.open(picture).convert("L"))
        assert pixels.shape == (2400, 1200)
        assert (pixels < 100).mean() > 0.005, "there is ink on the page"
        shutil.rmtree(tmp_path / "profile")
        dom = subprocess.run([*command, "--dump-dom", url], check=True, capture_output=True, text=True, timeout=120).stdout
        assert "student-1" in dom

    def test_names_are_data(self, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
        """Class and file names with markup and math reach the page escaped and break no figure."""
        evil = "<img src=x onerror=alert(1)> $x_{"
        labeled = make_folder("train", {evil: 10, "b & c": 10})
        (rest := make_folder("rest", {"": 12})).joinpath("0.png").rename(rest / "<script>alert(2)<.png")
        settings = {"images.labeled": str(labeled), "images.unlabeled": str(rest), "images.labels": None, "images.test_images": None,
                    "teacher.schedule.length": 2, "student.schedule.length": 2}  # fmt: skip
        run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
        report = job.noisy_student(run, override(tiny(), settings))
        page = report.folder.read_bytes("report.html").decode()
        assert "<img src=x" not in page
        assert "<script" not in page
        assert "&lt;img src=x" in page  # a long name is cut in the figure


class TestAblations:
    """Every switch of the recipe reaches its place."""

    def test_all_paths_are_settable(self) -> None:
        paths = set(known_paths(NoisyStudentRecipe))
        assert {"student.pseudo.noise", "selection.balance", "student.pseudo.targets", "student.ratio", "generations", "warm_start",
                "training", "student.combination", "student.view.randaugment.scale"} <= paths  # fmt: skip

    def test_pretrain_then_finetune_soft_labels_and_warm_start(self, tmp_path: Path) -> None:
        settings = {"student.net.stem_stride": 1, "training": "pretrain-finetune", "warm_start": True, "teacher.schedule.length": 3, "student.schedule.length": 3,
                    "student.pseudo.targets": "soft", "student.pseudo.noise": False}  # fmt: skip
        run = Run(str(tmp_path), inline(), echo=lambda line: None)
        job.noisy_student(run, override(tiny(), settings))
        before = json.loads((tmp_path / "1/pretrained/_record.json").read_text())
        after = json.loads((tmp_path / "1/student/_record.json").read_text())
        assert before["config"]["mix"] == "pseudo"
        assert before["inputs"]["start"] == json.loads((tmp_path / "teacher/_record.json").read_text())["fingerprint"]
        assert after["config"]["mix"] == "labeled"
        assert after["inputs"]["start"] == before["fingerprint"]

    def test_nets_and_ratios_by_generation(self) -> None:
        chosen = recipe("paper")
        assert [job.student_of(chosen, number).ratio for number in (1, 2, 3, 4)] == [14, 14, 28, 28]


class TestRecipes:
    @pytest.mark.parametrize("name", sorted(RECIPES))
    def test_every_recipe_is_valid_and_stable(self, name: str) -> None:
        assert recipe(name) == NoisyStudentRecipe.model_validate(recipe(name).model_dump(mode="json"))

    def test_paper_values(self) -> None:
        """Facts of the paper and its code, by value."""
        b7 = recipe("paper-b7")
        assert b7.selection.min_confidence == 0.3
        assert b7.selection.per_class == 130_000
        assert b7.student.optim.lr == pytest.approx(0.128)
        assert (b7.student.schedule.length, b7.student.schedule.decay_every, b7.student.schedule.decay_rate) == (350, 2.4, 0.97)
        assert (b7.student.net.dropout, b7.student.net.stochastic_depth) == (0.5, 0.2)
        assert b7.student.view.randaugment is not None
        assert b7.student.view.randaugment.magnitude == 27
        assert recipe("paper-b0").student.view.randaugment is None
        assert recipe("paper-b0").student.schedule.decay_every == pytest.approx(4.8)
        svhn = recipe("svhn")
        assert (svhn.student.batch, svhn.student.ratio, svhn.selection.per_class) == (128, 5, 53_113)
        assert svhn.student.optim.lr == pytest.approx(0.008)
        # At the end the rate has fallen from 0.016 to 0.0002 per 256 images.
        from ssl_ray.train.optim import learning_rate

        last = learning_rate(svhn.student.schedule, 0.016, 109_473 - round(5 * 69_257 / 128), 1.0)
        assert last == pytest.approx(2e-4, rel=0.05)


BAD: list[tuple[str, list[str], str]] = [
    ("recipe", ["nothing"], "the recipes are demo"),
    ("key", ["tiny", "--set", "student.optm.lr=1"], "did you mean one of student.optim.lr"),
    ("type", ["tiny", "--set", "student.optim.lr=fast"], "student.optim.lr"),
    ("assignment", ["tiny", "--set", "student.optim.lr"], "path=value"),
    ("scale key", ["tiny", "--set", "scale.workers=1"], "did you mean one of train_workers"),
    ("missing folder", ["tiny", "--labeled", "/nowhere"], "/nowhere does not exist"),
    ("sample", ["tiny", "--labeled", "sample:x"], "sample:mnist5k"),
    ("labels", ["tiny", "--set", "images.labels=5"], "5 labels for 10 classes"),
    ("root", ["tiny", "--root", "/proc/nothing"], "choose a --root that can be written"),
    ("rerun", ["tiny", "--rerun", "9/student"], "no such stage"),
    ("lanes", ["tiny", "--set", "scale.train_workers=5"], "more than the 4 parts of the batch (lanes); take at most 4"),
    ("batch", ["tiny", "--set", "student.batch=30"], "does not divide into 4 lanes"),
    ("net", ["tiny", "--set", "student.net.name=resnet"], "timm:NAME"),
]


class TestBadInput:
    @pytest.mark.parametrize(("name", "arguments", "message"), BAD, ids=[row[0] for row in BAD])
    def test_one_line_and_exit_code_2(
        self, name: str, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        root = [] if "--root" in arguments else ["--root", str(tmp_path / "root")]
        assert call(monkeypatch, *arguments, *root) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert not (tmp_path / "root/teacher/_record.json").exists()

    def test_more_workers_than_the_cluster_has(
        self, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--set", "scale.train_workers=4", "--set", "scale.train_cpus=2"]
        assert call(monkeypatch, "tiny", "--root", str(tmp_path), *arguments) == 2
        assert "scale.train_workers=4 asks for 8 CPU" in capsys.readouterr().err

    def test_a_class_without_pseudo_labels(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        gate = ["--set", "selection.min_confidence=0.999", "--set", "selection.allow_empty_classes=false"]
        assert (
            call(monkeypatch, "tiny", "--scale", "inline", "--root", str(tmp_path), "--set", "teacher.schedule.length=2", *gate)
            == 2
        )
        assert "no pseudo-label over 0.999" in capsys.readouterr().err
        assert not (tmp_path / "1/chosen/_record.json").exists()


class TestKill:
    @pytest.fixture(autouse=True)
    def nothing_is_left_running(self) -> Iterator[None]:
        self.processes: list[subprocess.Popen[str]] = []
        yield
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)

    def start(self, root: Path, scale: str) -> subprocess.Popen[str]:
        arguments = ["tiny", "--scale", scale, "--root", str(root), "--set", "teacher.schedule.length=240", "--set", "scale.checkpoint_steps=40",
                     "--set", "scale.label_rows_per_file=300", "--set", "student.schedule.length=6",
                     "--set", "scale.label_actors_max=0"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "jobs/noisy_student.py", *arguments],
            cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            # What a shell starts in the background ignores interrupts, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.05)

    @pytest.mark.parametrize("scale", ["local", "inline"])
    @pytest.mark.slow
    def test_killed_in_training_and_in_labelling_it_goes_on(self, scale: str, tmp_path: Path) -> None:
        root = tmp_path / "root"
        checkpoints = root / "teacher/training"
        process = self.start(root, scale)
        saved = "checkpoint_manager_snapshot.json" if scale == "local" else "state.pt"
        self.wait_for((checkpoints / saved).exists, "a checkpoint")
        self.kill(process)
        assert not (root / "teacher/_record.json").exists()

        labels, done, finished_labels = root / "1/labels/labels", {}, True
        if scale == "inline":  # tests/faults kills labelling on Ray
            process = self.start(root, scale)
            self.wait_for(lambda: len(list(labels.glob("0*.parquet"))) >= 2, "label files")
            self.kill(process)
            done = {path.name: path.stat().st_mtime_ns for path in labels.glob("0*.parquet")}
            finished_labels = (root / "1/labels/_record.json").exists()

        process = self.start(root, scale)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert "finished before" in output
        teacher = json.loads((root / "teacher/_record.json").read_text())
        steps = [json.loads(line)["step"] for line in (root / "teacher/history.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps)), "no step was done twice in the history"
        assert steps[-1] == 240
        assert teacher["results"]["first_step"] >= 40, "training went on from a checkpoint"
        if not finished_labels:
            record = json.loads((root / "1/labels/_record.json").read_text())
            assert record["results"]["labeled_now"] < 4700
        assert {name: (labels / name).stat().st_mtime_ns for name in done} == done, "finished files were not written again"
        rows = json.loads((root / "scores.json").read_text())
        assert {row["model"] for row in rows} == {"teacher", "student-1"}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.slow
    def test_stopped_while_ray_trains_it_says_so(self, number: int, tmp_path: Path) -> None:
        """Ray takes both signals for itself."""
        process = self.start(tmp_path / "root", "local")
        self.wait_for(lambda: bool(pids("ray::RayTrainWorker", process.pid)), "a training worker")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "stopped; the same command goes on with what is saved" in output


def test_the_demo_is_what_the_readme_says() -> None:
    chosen = demo()
    assert (chosen.images.labeled, chosen.images.labels, chosen.images.test_images) == ("sample:mnist5k", 100, 1000)
    assert local().train_workers == 1
