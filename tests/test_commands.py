"""The program `ssl-ray`: what it prints, what it imports for that, and the same words in Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ssl_ray
from ssl_ray.commands import COMMANDS, LISTS, run
from ssl_ray.entry import program
from ssl_ray.errors import ConfigError

REPO = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "ray", "timm", "pandas", "matplotlib", "scipy", "sklearn")
"""Modules that take long to import, and that nobody needs for help or a mistyped word."""

LIGHT = f"""
import sys
from ssl_ray.__main__ import main
code = main()
print("imported:", [name for name in {HEAVY!r} if name in sys.modules])
sys.exit(code)
"""


def light(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program, and let it say which heavy modules it imported."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from ssl_ray.__main__ import main
for words in [[], ["--help"], *([command, "--help"] for command in {[*COMMANDS]!r})]:
    sys.argv = ["ssl-ray", *words]
    assert main() == 0, words
    imported = [name for name in {HEAVY!r} if name in sys.modules]
    assert not imported, (words, imported)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    usages = re.findall(r"^usage: (ssl-ray \S+)", done.stdout, re.MULTILINE)
    assert usages == ["ssl-ray COMMAND"] * 2 + [f"ssl-ray {command}" for command in COMMANDS]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["noisy-studen"], "did you mean noisy-student?"),
        (["noisy-student", "dem"], "there is no recipe 'dem'"),
        (["noisy-student", "--set", "student.lr=1"], "did you mean one of teacher.optim.lr, student.optim.lr"),
        (["noisy-student", "--set", "student.optim.lr=fast"], "student.optim.lr"),
        (
            ["simclrv2", "--labeled", "/nowhere/at/all", "--root", "{root}", "--scale", "inline"],
            "/nowhere/at/all does not exist",
        ),
        (["label", "--images", "/nowhere"], "--teacher"),
        (["list", "models"], "give one of recipes, methods, backbones, sources, samples"),
    ],
)
def test_a_mistake_is_one_line_and_imports_nothing_heavy(words: list[str], line: str, tmp_path: Path) -> None:
    done = light(*(word.format(root=tmp_path / "root") for word in words))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "imported: []" in done.stdout


@pytest.mark.parametrize("kind", LISTS)
def test_lists_name_what_there_is(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["list", kind])
    expected = {
        "recipes": "hpt miniature",
        "methods": "moco",
        "backbones": "resnet:50",
        "sources": "wds:path/shard-{0000..0099}.tar",
        "samples": "sample:mnist5k",
    }
    assert expected[kind] in capsys.readouterr().out


def test_a_program_of_jobs_is_its_command() -> None:
    paths = sorted(path for path in (REPO / "jobs").glob("*.py") if path.name != "__init__.py")
    code = f"""
import runpy, sys
for path in {[str(path) for path in paths]!r}:
    sys.argv = [path, "--help"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, path
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = ["rethinking" if path.stem == "self_training" else path.stem.replace("_", "-") for path in paths]
    assert re.findall(r"^usage: ssl-ray (\S+)", done.stdout, re.MULTILINE) == commands


class TestPython:
    def test_a_command_is_a_function_of_the_same_words(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        settings = {"teacher.schedule.length": 2, "student.schedule.length": 2, "images.labels": 40}
        report = ssl_ray.noisy_student("tiny", root=tmp_path / "root", scale="inline", settings=settings)
        assert {row["model"] for row in report.results["scores"]} >= {"teacher", "student-1"}
        assert (tmp_path / "root/report/report.html").exists()

    def test_a_mistake_is_an_error_of_ours(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="unrecognized arguments: --labelled"):
            ssl_ray.noisy_student("tiny", root=tmp_path / "root", labelled="photos/")


class TestProgram:
    """How a hint names the program."""

    def test_by_its_name_where_the_path_finds_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "ssl-ray").write_text("#!/bin/sh\n")
        (tmp_path / "ssl-ray").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert program() == "ssl-ray"
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.chdir(tmp_path)
        assert program() == "ssl-ray"  # its path, from the current folder

    def test_by_python_where_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.chdir("/")
        assert program().endswith("python -m ssl_ray")


@pytest.mark.slow
def test_a_wheel_holds_the_program_and_its_files(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves its files in the folder that it builds
    shutil.copytree(REPO / "ssl_ray", source / "ssl_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, timeout=300, capture_output=True)
    (wheel,) = tmp_path.glob("ssl_ray-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "ssl-ray = ssl_ray.__main__:main" in archive.read(points).decode()
        archive.extractall(tmp_path / "site")
    assert not [name for name in names if name.startswith(("jobs/", "tests/", "benchmarks/"))]
    assert {"ssl_ray/py.typed", "ssl_ray/planning/machines.json"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); from ssl_ray.__main__ import main; sys.exit(main())",
         str(tmp_path / "site"), "noisy-student", "tiny", "--scale", "inline", "--root", str(tmp_path / "root"),
         "--set", "teacher.schedule.length=2", "--set", "student.schedule.length=2"],
        cwd=tmp_path, env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"report: {tmp_path}/root/report/report.html" in done.stdout
