from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssl_ray.artifacts import Artifact
from ssl_ray.config import Config
from ssl_ray.errors import ConfigError, StaleStageError, UserError
from ssl_ray.named_files import WeightsFile
from ssl_ray.scale import Scale, local
from ssl_ray.stage import Run, _commit, stage
from ssl_ray.storage import Folder


class Number(Artifact):
    """A folder with one number in its record."""


class AddConfig(Config):
    amount: int = 1


CALLS: list[str] = []


@stage(Number)
def add(config: AddConfig, out: Folder, scale: Scale, *, to: Number | None = None) -> dict[str, Any]:
    CALLS.append(out.path)
    value = config.amount + (to.results["value"] if to else 0)
    out.write_json("partial.json", value)
    return {"summary": f"{value}", "value": value}


@stage(Number, resumable=True)
def dies(config: AddConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    out.write_json("partial.json", 1)
    raise KeyboardInterrupt


@pytest.fixture
def root(tmp_path: Path) -> str:
    CALLS.clear()
    return str(tmp_path / "root")


def make(root: str, **options: Any) -> Run:
    return Run(root, local(), echo=lambda line: None, **options)


def test_a_finished_stage_is_loaded_not_run(root: str) -> None:
    assert make(root)("a", add, AddConfig()).results["value"] == 1
    assert make(root)("a", add, AddConfig()).results["value"] == 1
    assert len(CALLS) == 1


def test_the_scale_is_not_part_of_the_fingerprint(root: str) -> None:
    make(root)("a", add, AddConfig())
    Run(root, local().model_copy(update={"train_workers": 7}), echo=lambda line: None)("a", add, AddConfig())
    assert len(CALLS) == 1


def test_a_changed_setting_stops_and_is_named(root: str) -> None:
    make(root)("1/a", add, AddConfig())
    with pytest.raises(StaleStageError, match=r"config.amount: 1 -> 2.*--rerun 1/a.*--root"):
        make(root)("1/a", add, AddConfig(amount=2))
    assert len(CALLS) == 1


@stage(Number, derived=True)
def total(config: AddConfig, out: Folder, scale: Scale, *, of: list[Number]) -> dict[str, Any]:
    CALLS.append(out.path)
    return {"summary": "", "value": sum(part.results["value"] for part in of)}


class WeightsConfig(Config):
    weights: WeightsFile = None


@stage(Number)
def load(config: WeightsConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    CALLS.append(out.path)
    return {"summary": "", "value": 1}


def test_a_weights_file_that_changed_under_its_name_stops(root: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"first")
    config = WeightsConfig(weights=str(file))
    make(root)("a", load, config)
    make(root)("a", load, config)
    assert len(CALLS) == 1
    file.write_bytes(b"other")
    with pytest.raises(StaleStageError, match=r"weights \(file\)"):
        make(root)("a", load, config)
    with pytest.raises(StaleStageError):
        make(root, plan=True)("a", load, config)


def test_a_finished_stage_does_not_need_its_weights_file(root: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"first")
    config = WeightsConfig(weights=str(file))
    make(root)("a", load, config)
    file.unlink()
    make(root)("a", load, config)
    make(root, plan=True)("a", load, config)
    with pytest.raises(ConfigError, match="there is no weights file"):
        make(root)("b", load, config)
    assert len(CALLS) == 1


def test_a_derived_stage_follows_its_inputs_unasked(root: str) -> None:
    """More inputs, another computation of an input: computed anew; the same ones: loaded. A plan says so."""
    run = make(root)
    a, b = run("a", add, AddConfig()), run("b", add, AddConfig(amount=5))
    assert run("total", total, AddConfig(), of=[a]).results["value"] == 1
    assert make(root)("total", total, AddConfig(), of=[a, b]).results["value"] == 6
    assert make(root)("total", total, AddConfig(), of=[a, b]).results["value"] == 6
    assert [Path(path).name for path in CALLS].count("total") == 2
    lines: list[str] = []
    Run(root, local(), echo=lines.append, plan=True)("total", total, AddConfig(), of=[b])
    assert lines == ["  total              would be computed"]
    again = make(root, rerun=["a"])
    assert again("total", total, AddConfig(), of=[again("a", add, AddConfig()), b]).results["value"] == 6
    assert [Path(path).name for path in CALLS].count("total") == 3


def test_a_changed_input_stops(root: str) -> None:
    run = make(root)
    run("b", add, AddConfig(), to=run("a", add, AddConfig()))
    other = make(root)
    with pytest.raises(StaleStageError, match=r"inputs\.to"):
        other("b", add, AddConfig(), to=other("c", add, AddConfig(amount=5)))


def test_a_half_finished_stage_goes_on_only_with_its_own_settings(root: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(root)("a", dies, AddConfig())
    lines: list[str] = []
    with pytest.raises(StaleStageError, match=r"config\.amount: 1 -> 2"):
        make(root)("a", dies, AddConfig(amount=2))
    with pytest.raises(KeyboardInterrupt):
        Run(root, local(), echo=lines.append)("a", dies, AddConfig())
    assert "goes on with what is saved" in lines[0]
    with pytest.raises(FileNotFoundError):
        Number(f"{root}/a")


@stage(Number)
def refuses(config: AddConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    if config.amount == 1:
        raise UserError("no")
    return {"summary": "", "value": config.amount}


def test_a_stage_that_left_nothing_may_change_its_settings(root: str) -> None:
    """Who mistyped a path must not be sent to --rerun."""
    with pytest.raises(UserError, match="no"):
        make(root)("a", refuses, AddConfig())
    assert make(root)("a", refuses, AddConfig(amount=2)).results["value"] == 2


def test_rerun_computes_a_stage_and_all_that_stands_on_it(root: str) -> None:
    def job(run: Run) -> Number:
        a = run("a", add, AddConfig())
        run("aside", add, AddConfig())
        b = run("b", add, AddConfig(), to=a)
        return run("c", add, AddConfig(), to=b)

    job(make(root))
    CALLS.clear()
    job(make(root, rerun=["b"]))
    assert [Path(path).name for path in CALLS] == ["b", "c"]


def test_rerun_of_an_unknown_stage(root: str) -> None:
    with pytest.raises(UserError, match="no such stage"):
        make(root, rerun=["nothing"])


def test_killed_while_discarding_counts_as_nothing(root: str) -> None:
    make(root)("a", add, AddConfig())
    Folder(f"{root}/a").write_json("_started.json", {"discarded": True})
    assert make(root)("a", add, AddConfig(amount=3)).results["value"] == 3


def test_a_plan_says_what_would_run_and_writes_nothing(root: str) -> None:
    make(root)("a", add, AddConfig())
    lines: list[str] = []
    run = Run(root, local(), plan=True, echo=lines.append)
    run("b", add, AddConfig(amount=4), to=run("a", add, AddConfig()))
    assert "a" in lines[0]
    assert "would be loaded" in lines[0]
    assert "would be computed" in lines[1]
    assert not Path(root, "b").exists()
    with pytest.raises(StaleStageError):
        run("a", add, AddConfig(amount=9))
    nowhere = Path(root).parent / "nowhere"
    Run(str(nowhere), local(), plan=True, echo=lines.append)("a", add, AddConfig())
    assert not nowhere.exists()


def test_after_a_rerun_what_stands_on_it_is_stale(root: str) -> None:
    """--rerun a, killed before b: the plain command must not put the old b on the new a."""
    run = make(root)
    run("b", add, AddConfig(), to=run("a", add, AddConfig()))
    make(root, rerun=["a"])("a", add, AddConfig())
    after = make(root)
    with pytest.raises(StaleStageError, match="computed anew"):
        after("b", add, AddConfig(), to=after("a", add, AddConfig()))
    assert make(root, rerun=["b"])("b", add, AddConfig(), to=Number(f"{root}/a")).results["value"] == 2


@pytest.mark.parametrize("survivor", ["_record.json", "partial.json", None])
def test_a_discard_killed_anywhere_leaves_nothing_that_counts(root: str, survivor: str | None) -> None:
    make(root)("a", add, AddConfig())
    folder = Folder(f"{root}/a")
    folder.write_json("_started.json", {"discarded": True})
    for name in {"_record.json", "partial.json"} - {survivor}:
        folder.remove(name)
    CALLS.clear()
    make(root)("a", add, AddConfig())
    assert len(CALLS) == 1


def test_other_people_s_files_are_not_touched(root: str) -> None:
    Folder(f"{root}/a").write_json("holiday.json", {})
    with pytest.raises(UserError, match="another --root"):
        make(root)("a", add, AddConfig())
    assert Folder(f"{root}/a").names() == ["holiday.json"]


def test_the_record_says_everything(root: str) -> None:
    record = make(root)("a", add, AddConfig()).record
    assert record.kind == "Number"
    assert record.config == {"amount": 1}
    assert {"python", "torch", "ray"} <= record.versions.keys()
    assert record.wall_s >= 0


def test_a_machine_without_git_leaves_the_commit_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert _commit() == ""
