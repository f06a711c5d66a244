"""Test images among the others, and images that stand twice."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ray.artifacts import Corpus
from ssl_ray.cli import run_job
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.errors import SourceError
from ssl_ray.pipelines import noisy_student
from ssl_ray.stage import Run
from ssl_ray.stages.ingest import ingest

Make = Callable[..., Path]


@pytest.fixture
def sources(make_folder: Make) -> dict[str, Path]:
    return {
        "labeled": make_folder("train", {"a": 10, "b": 10}),
        "unlabeled": make_folder("rest", {"": 12, "sub": 3}),
        "test": make_folder("test", {"a": 4, "b": 4}),
    }


def corpus(run: Run, sources: dict[str, Path], **settings: Any) -> Corpus:
    return run("images", ingest, ImagesConfig(**{name: str(path) for name, path in sources.items()}, **settings))  # type: ignore[no-any-return]


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


class TestExact:
    @pytest.mark.parametrize(("split", "place"), [("labeled", "b/99.png"), ("unlabeled", "sub/99.png")])
    def test_a_leak_is_refused_and_both_are_named(
        self, quiet_run: Run, sources: dict[str, Path], split: str, place: str
    ) -> None:
        copy(sources["test"] / "a/2.png", sources[split] / place)
        with pytest.raises(
            SourceError, match=rf"{place} has the same bytes as the test image test/a/2\.png.*images\.leaks=drop"
        ):
            corpus(quiet_run, sources)

    def test_or_left_out(self, quiet_run: Run, sources: dict[str, Path]) -> None:
        copy(sources["test"] / "a/2.png", sources["unlabeled"] / "99.png")
        images = corpus(quiet_run, sources, leaks="drop")
        assert images.results["images"]["unlabeled"] == 15
        assert images.results["dropped"] == {"also a test image": 1}
        ids = [name for shard in images.shards("unlabeled") for name in images.rows(shard.shard)["image_id"].to_pylist()]
        assert "unlabeled/99.png" not in ids
        assert images.num_images("test") == 8, "test images stay"

    def test_or_ignored(self, quiet_run: Run, sources: dict[str, Path]) -> None:
        copy(sources["test"] / "a/2.png", sources["unlabeled"] / "99.png")
        assert corpus(quiet_run, sources, leaks="ignore").num_images("unlabeled") == 16

    def test_in_parquet_lengths_are_not_known_and_bytes_are_read(
        self, quiet_run: Run, sources: dict[str, Path], tmp_path: Path
    ) -> None:
        files = [*sorted(sources["unlabeled"].rglob("*.png")), sources["test"] / "b/1.png"]
        pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), tmp_path / "u.parquet")
        with pytest.raises(SourceError, match=r"u\.parquet:15 has the same bytes as the test image test/b/1\.png"):
            corpus(quiet_run, sources | {"unlabeled": tmp_path / "u.parquet"})

    def test_images_as_long_as_a_test_image_alone_are_read(
        self, quiet_run: Run, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import ssl_ray.data.leaks as leaks

        read: list[int] = []
        original = leaks.read_rows

        def counted(manifest: Any, *rest: Any) -> Any:
            read.append(len(manifest))
            return original(manifest, *rest)

        for number in range(5):
            (sources["unlabeled"] / f"long-{number}.png").write_bytes(b"x" * (100_000 + number))
        monkeypatch.setattr(leaks, "read_rows", counted)
        corpus(quiet_run, sources)
        lengths = {file.stat().st_size for file in sources["test"].rglob("*.png")}
        others = [f for name in ("labeled", "unlabeled") for f in sources[name].rglob("*.png") if f.stat().st_size in lengths]
        assert sum(read) == 8 + len(others)


class TestNear:
    def test_another_size_and_compression(self, quiet_run: Run, sources: dict[str, Path], tmp_path: Path) -> None:
        scene = Image.effect_mandelbrot((80, 60), (-2, -1.2, 1, 1.2), 30).convert("RGB")
        scene.save(sources["test"] / "a" / "scene.png")
        buffer = io.BytesIO()
        scene.resize((120, 90)).save(buffer, "JPEG", quality=60)
        (sources["unlabeled"] / "copy.jpg").write_bytes(buffer.getvalue())
        scene.rotate(180).save(sources["unlabeled"] / "other.png")
        assert corpus(quiet_run, sources).num_images("unlabeled") == 17, "the bytes differ"
        run = Run(str(tmp_path / "second"), quiet_run.scale, echo=lambda line: None)
        with pytest.raises(SourceError, match=r"copy\.jpg is nearly the same image as the test image test/a/scene\.png"):
            corpus(run, sources, near_leaks=0.98)
        run = Run(str(tmp_path / "third"), quiet_run.scale, echo=lambda line: None)
        images = corpus(run, sources, near_leaks=0.98, leaks="drop")
        assert images.results["dropped"] == {"nearly a test image": 1}


class TestDuplicates:
    def test_one_of_each_stays(self, quiet_run: Run, sources: dict[str, Path]) -> None:
        for name in ("x.png", "y.png", "sub/z.png"):
            copy(sources["unlabeled"] / "3.png", sources["unlabeled"] / name)
        images = corpus(quiet_run, sources, deduplicate=True)
        assert images.num_images("unlabeled") == 15
        assert images.results["dropped"] == {"has the bytes of another": 3}

    def test_off_by_default(self, quiet_run: Run, sources: dict[str, Path]) -> None:
        copy(sources["unlabeled"] / "3.png", sources["unlabeled"] / "x.png")
        assert corpus(quiet_run, sources).num_images("unlabeled") == 16


def test_credentials_in_a_path_are_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in the message, not in a record, not in the traceback of --debug."""
    for arguments in (
        ["--unlabeled", "s3://AKIA123:hush@bucket/x/"],
        ["--unlabeled", "s3://AKIA123:hu/hush@bucket/x/"],
        ["--root", "s3://bucket/x?secret_key=hush"],
    ):
        command = ["jobs/noisy_student.py", "tiny", "--debug", "--root", str(tmp_path / "r"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        assert run_job(noisy_student.main) == 2
        out, err = capsys.readouterr()
        assert "AWS_SECRET_ACCESS_KEY" in err
        assert "hush" not in out + err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "hush" in path.read_text(errors="replace")]
