"""Damage in files that the program wrote: one line that names the file and the way out, or the work is done again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssl_ray.artifacts import Checkpoint, Scores
from ssl_ray.config import override
from ssl_ray.damage import sealed
from ssl_ray.data.kmeans import State
from ssl_ray.data.materialize import read_copied
from ssl_ray.data.points import Setup
from ssl_ray.data.quarantine import tidied, wrong_ranges
from ssl_ray.errors import DamagedError, UserError
from ssl_ray.label_files import LabelFile
from ssl_ray.models import load_model
from ssl_ray.pipelines.noisy_student import noisy_student
from ssl_ray.recipes.noisy_student import NoisyStudentRecipe, tiny
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages import cluster
from ssl_ray.storage import Folder
from ssl_ray.train import fit
from ssl_ray.tune.sweep import left_by

Damage = Callable[[Path], None]
Job = Callable[..., Run]
LABELS = "1/labels/labels/000002-00000000-00000016.parquet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NoisyStudentRecipe]:
    """A finished job of one generation on 44 images, and its recipe."""
    base, draw = tmp_path_factory.mktemp("damage"), np.random.default_rng(0)
    for place, count in (("labeled/a", 6), ("labeled/b", 6), ("test/a", 4), ("test/b", 4), ("unlabeled", 24)):
        (base / place).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(base / place / f"{number}.png")
    sources = {f"images.{name}": str(base / name) for name in ("labeled", "unlabeled", "test")}
    short = {"teacher.schedule.length": 2, "student.schedule.length": 2, "images.shard_rows": 16}
    recipe = override(tiny(), {"images.labels": None, "images.test_images": None, **sources, **short})
    noisy_student(Run(str(base / "root"), inline(), echo=lambda line: None), recipe)
    return base / "root", recipe


@pytest.fixture
def root(finished: tuple[Path, NoisyStudentRecipe], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "root"))


@pytest.fixture
def job(finished: tuple[Path, NoisyStudentRecipe], root: Path) -> Job:
    """Runs the job again on a copy of the finished root."""

    def again(*rerun: str, **changes: Any) -> Run:
        run = Run(str(root), inline(), rerun, echo=lambda line: None)
        noisy_student(run, override(finished[1], changes))
        return run

    return again


def truncate(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16] = bytes(byte ^ 255 for byte in data[middle : middle + 16])
    file.write_bytes(bytes(data))


def writes(text: str) -> Damage:
    return lambda file: [file.write_text(text), None][1]


def edits(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def edit(file: Path) -> None:
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return edit


ANY: dict[str, Damage] = {
    "empty": writes(""),
    "half": truncate,
    "random bytes": lambda file: [file.write_bytes(np.random.default_rng(1).bytes(file.stat().st_size)), None][1],
    "a folder": become_a_folder,
}
JSON: dict[str, Damage] = ANY | {
    "a list": writes("[]"),
    "a number": writes("5"),
    "null": writes("null"),
    "NaN": writes('{"kind": NaN}'),
    "nested": writes("[" * 100_000),
}
SEALED: dict[str, Damage] = JSON | {
    "a key less": edits(lambda content: content.pop("config")),
    "another type": edits(lambda content: content.update(config="x")),
    "an inner value": edits(lambda content: content["config"].update(seed="x")),
}
TABLE: dict[str, Damage] = ANY | {
    "flipped bytes": flip,
    "another schema": lambda file: pq.write_table(pa.table({"x": [1]}), file),
    "another type": lambda file: pq.write_table(pq.read_table(file).cast(text_of(file)), file),
    "a row less": lambda file: pq.write_table(pq.read_table(file).slice(1), file),
}


def text_of(file: Path) -> pa.Schema:
    """The schema of a file with all whole numbers as text."""
    schema = pq.read_schema(file)
    return pa.schema([(field.name, pa.string() if pa.types.is_integer(field.type) else field.type) for field in schema])


def check(error: DamagedError, file: Path, stage: str) -> None:
    said = str(error)
    assert "\n" not in said
    assert file.name in said or f"{file.parent} is damaged" in said or f"{file.parent}/*.parquet" in said
    assert f"--rerun {stage}" in said
    assert error.exit_code == 2


@pytest.mark.parametrize("damage", SEALED)
@pytest.mark.parametrize("name", ["_record.json", "_started.json"])
def test_a_damaged_record_or_mark_is_one_line(name: str, damage: str, root: Path, job: Job) -> None:
    file = root / "1/labels" / name
    SEALED[damage](file)
    with pytest.raises(DamagedError, match=re.escape(str(file))) as caught:
        job()
    check(caught.value, file, "1/labels")


@pytest.mark.parametrize("name", ["_record.json", "_started.json"])
def test_rerun_mends_a_damaged_record_or_mark(name: str, root: Path, job: Job) -> None:
    become_a_folder(root / "1/chosen" / name)
    assert "1/chosen" in job("1/chosen").computed


def test_a_record_without_its_mark_can_be_computed_again(root: Path, job: Job) -> None:
    (root / "report/_started.json").unlink()
    with pytest.raises(DamagedError, match=r"_started.json is damaged: it is missing.*--rerun report"):
        job()
    assert job("report").computed == ["report"]


@pytest.mark.parametrize("name", ["_record.json", "_started.json"])
def test_a_key_of_a_newer_version_is_named(name: str, root: Path, job: Job) -> None:
    file = root / "teacher" / name
    content = json.loads(file.read_text()) | {"power": 5}
    content.pop("digest")
    file.write_text(json.dumps(sealed(content)))
    with pytest.raises(DamagedError, match=r"written by a newer version.*'power'.*update"):
        job()


@pytest.mark.parametrize("other", ["teacher", "1/chosen"])
def test_the_record_of_another_stage_is_noticed(other: str, root: Path, job: Job) -> None:
    shutil.copy(root / other / "_record.json", root / "1/student/_record.json")
    with pytest.raises(DamagedError, match=f"1/student/_record.json.*stage {other}.*--rerun 1/student"):
        job()


def test_where_mark_and_record_are_both_damaged_the_place_names_the_stage(root: Path, job: Job) -> None:
    for name in ("_record.json", "_started.json"):
        (root / "1/labels" / name).write_text("")
    with pytest.raises(DamagedError, match="--rerun 1/labels"):
        job()


def test_a_mark_alone_that_is_damaged_is_begun_again(root: Path, job: Job) -> None:
    for file in (root / "report").iterdir():
        file.unlink()
    (root / "report/_started.json").write_text("{")
    assert job().computed == ["report"]


MODEL: dict[str, Damage] = JSON | {
    "a class less": edits(lambda content: content["classes"].pop()),
    "a class less, and its number": edits(lambda content: content.update(classes=["a"], num_classes=1)),
    "a key less": edits(lambda content: content.pop("net")),
    "no classes": edits(lambda content: content.pop("classes")),
    "classes of numbers": edits(lambda content: content.update(classes=[1, 2])),
    "another net": edits(lambda content: content["net"].update(width=16)),
    "a net of text": edits(lambda content: content.update(net="x")),
    "a setting of text": edits(lambda content: content["net"].update(width="x")),
    "no size": edits(lambda content: content["preprocess"].update(size=None)),
}


@pytest.mark.parametrize("damage", MODEL)
def test_a_damaged_model_does_not_label(damage: str, root: Path, job: Job) -> None:
    MODEL[damage](root / "teacher/model.json")
    with pytest.raises(DamagedError, match=r"model\.json") as caught:
        load_model(root / "teacher")
    check(caught.value, root / "teacher/model.json", "teacher")
    with pytest.raises(UserError):
        job("1/labels")


def test_a_model_of_a_newer_version_says_so(root: Path) -> None:
    edits(lambda content: content.update(tower={}))(root / "teacher/model.json")
    with pytest.raises(DamagedError, match=r"model.json was written by a newer version.*'tower'"):
        load_model(root / "teacher")


def with_nan(file: Path) -> None:
    weights = load_file(file)
    weights["head.weight"].flatten()[0] = float("nan")
    save_file({key: value.clone() for key, value in weights.items()}, file)


WEIGHTS: dict[str, Damage] = ANY | {
    "NaN": with_nan,
    "other tensors": lambda file: save_file({"x": torch.zeros(2)}, file),
    "a tensor less": lambda file: save_file(
        {key: value for key, value in load_file(file).items() if key != "head.weight"}, file
    ),
    "other shapes": lambda file: save_file({key: value[None].clone() for key, value in load_file(file).items()}, file),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_damaged_weights_are_one_line(damage: str, root: Path) -> None:
    WEIGHTS[damage](root / "teacher/model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.(safetensors|json) is damaged.*--rerun teacher") as caught:
        load_model(root / "teacher")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", JSON)
def test_a_damaged_history_is_one_line(damage: str, root: Path, job: Job) -> None:
    JSON[damage](root / "teacher/history.jsonl")
    model = Checkpoint(str(root / "teacher"))
    with pytest.raises(DamagedError, match=r"history.jsonl is damaged.*--rerun teacher"):
        _ = model.history


@pytest.mark.parametrize("damage", TABLE)
@pytest.mark.parametrize(
    ("name", "stage", "reader"),
    [
        ("images/shards.parquet", "images", "teacher"),
        ("images/manifest/000000.parquet", "images", "teacher"),
        (LABELS, "1/labels", "1/chosen"),
        (LABELS, "1/labels", "1/student"),
    ],
)
def test_a_damaged_table_is_one_line(name: str, stage: str, reader: str, damage: str, root: Path, job: Job) -> None:
    TABLE[damage](root / name)
    with pytest.raises(DamagedError) as caught:
        job(reader)
    check(caught.value, root / name, stage)


def test_labels_of_other_rows_are_noticed(root: Path, job: Job) -> None:
    shutil.copy(root / LABELS.replace("2-00000000-00000016", "3-00000000-00000008"), root / LABELS)
    with pytest.raises(DamagedError, match="its name says shard 2"):
        job("1/student")


def test_a_confidence_that_is_no_number_is_noticed(root: Path, job: Job) -> None:
    table = pq.read_table(root / LABELS)
    position = table.column_names.index("confidence")
    pq.write_table(
        table.set_column(position, table.schema.field(position), pa.array([np.nan] * 16, pa.float32())), root / LABELS
    )
    with pytest.raises(DamagedError, match="not a number"):
        job("1/student")


@pytest.mark.parametrize("damage", sorted(TABLE.keys() - {"a folder"}))
def test_a_damaged_label_file_of_an_unfinished_stage_is_computed_again(damage: str, root: Path, job: Job) -> None:
    (root / "1/labels/_record.json").unlink()
    before = pq.read_table(root / LABELS)
    TABLE[damage](root / LABELS)
    assert job().computed == ["1/labels"]
    assert pq.read_table(root / LABELS).equals(before)


@pytest.mark.parametrize("damage", [*ANY, "another state"])
def test_a_damaged_state_of_a_training_begins_again(damage: str, root: Path, job: Job) -> None:
    state = root / "teacher/training" / fit.STATE
    state.parent.mkdir()
    torch.save({"step": 1, "model": {}, "optimizer": {}, "history": [], "config": "x"}, state)
    ANY.get(damage, lambda file: None)(state)
    before = load_file(root / "teacher/model.safetensors")
    (root / "teacher/_record.json").unlink()
    assert job().computed == ["teacher"]
    after = load_file(root / "teacher/model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_more_generations_add_to_a_finished_job(job: Job) -> None:
    assert job(generations=2).computed == ["2/labels", "2/chosen", "2/student", "scores/student-2", "report"]


def test_a_moved_root_is_loaded(root: Path, job: Job) -> None:
    assert job().computed == []


@pytest.mark.parametrize("damage", sorted(SEALED.keys() - {"a folder", "a key less", "another type", "an inner value"}))
def test_a_damaged_trial_counts_as_none(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Folder(str(tmp_path))
    place.write_sealed("trial.json", {"identity": "x"})
    assert left_by(place, "trial.json") == {"identity": "x"}
    SEALED[damage](tmp_path / "trial.json")
    assert left_by(place, "trial.json") is None
    assert "trial.json is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", [cluster.STATE, cluster.SETUP])
@pytest.mark.parametrize("damage", ANY)
def test_damaged_iterations_of_kmeans_begin_again(damage: str, name: str, tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    place.write_bytes(cluster.SETUP, cluster.dumped_setup(Setup(), {"points": 3}))
    place.write_bytes(cluster.STATE, cluster.dumped(State()))
    assert cluster.saved_work(place) is not None
    ANY[damage](tmp_path / name)
    assert cluster.saved_work(place) is None
    assert not place.exists(cluster.STATE)


def test_copied_images_that_lack_a_row_are_noticed(tmp_path: Path) -> None:
    table = pa.table({"row": pa.array([0, 2], pa.int32()), "image": [b"a", b"c"]})
    Folder(str(tmp_path)).write_table("000000.parquet", table)
    assert read_copied(Folder(str(tmp_path)), 0, np.array([2])) == [b"c"]
    with pytest.raises(DamagedError, match=r"000000.parquet is damaged: it lacks images"):
        read_copied(Folder(str(tmp_path)), 0, np.array([1, 2]))


def test_a_damaged_quarantine_of_an_unfinished_stage_is_taken_away(tmp_path: Path) -> None:
    file, folder = LabelFile(0, 0, 2), Folder(str(tmp_path))
    table = pa.table({"shard": pa.array([0], pa.int32()), "row": pa.array([1], pa.int32())})
    (folder / "labels").write_table(file.name, table)
    (folder / "quarantine").write_bytes(file.name, b"")
    assert tidied(folder / "labels", folder / "quarantine") == [file]
    assert wrong_ranges(folder / "labels", folder / "quarantine", [file], {}) == [file]


def test_a_missing_file_of_predictions_is_noticed(root: Path) -> None:
    next((root / "scores/teacher/labels").iterdir()).unlink()
    with pytest.raises(DamagedError, match=r"scores/teacher/labels is damaged.*--rerun scores/teacher"):
        _ = Scores(str(root / "scores/teacher")).files


@pytest.mark.parametrize("damage", sorted(JSON.keys() - {"a number", "NaN"}))
def test_a_damaged_list_of_rays_checkpoints_is_taken_away(damage: str, tmp_path: Path) -> None:
    out = Folder(str(tmp_path))
    out.write_json(fit.CHECKPOINTS, {})
    fit.drop_unreadable_list(out)
    assert out.exists(fit.CHECKPOINTS)
    JSON[damage](tmp_path / fit.CHECKPOINTS)
    fit.drop_unreadable_list(out)
    assert not out.exists(fit.CHECKPOINTS)
