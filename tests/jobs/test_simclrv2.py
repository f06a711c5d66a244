"""SimCLRv2 and the evaluation of its encoder, from their command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

import ssl_ray.pipelines.evaluate as evaluate_job
import ssl_ray.pipelines.simclrv2 as job
from ssl_ray import load_model
from ssl_ray.artifacts import Corpus
from ssl_ray.cli import run_job
from ssl_ray.config import override
from ssl_ray.nets import build_encoder
from ssl_ray.recipes.simclrv2 import RECIPES, paper, recipe, tiny
from ssl_ray.scale import inline
from ssl_ray.stage import Run
from ssl_ray.stages.adopt import AdoptConfig, adopt, hash_of
from ssl_ray.subset import SubsetConfig, draw_subset
from ssl_ray.train.streams import make_streams


def call(module: ModuleType, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job", *arguments, "--scale", "inline"])
        return run_job(module.main)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("simclrv2") / "root"
    assert call(job, "tiny", "--root", str(root), "--set", "images.val_images=100") == 0
    return root


class TestSteps:
    def test_scores(self, finished: Path) -> None:
        rows = json.loads((finished / "scores.json").read_text())
        assert {"supervised", "finetuned", "distilled", "linear", "knn"} == {row["model"] for row in rows}
        for row in rows:
            assert row.keys() == {"model", "seed", "split", "metric", "value", "n"}

    def test_a_second_call_recomputes_nothing(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("_record.json")}
        assert call(job, "tiny", "--root", str(finished), "--set", "images.val_images=100") == 0
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("_record.json")} == before
        assert " starts" not in capsys.readouterr().out

    def test_pretraining_is_watched(self, finished: Path) -> None:
        history = [json.loads(line) for line in (finished / "pretrain/history.jsonl").read_text().splitlines()]
        for key in ("contrastive_accuracy", "feature_std", "effective_rank", "knn_val"):
            assert all(key in entry for entry in history), key
        assert all(0 <= entry["knn_val"] <= 1 for entry in history)

    def test_all_images_but_validation_and_test_are_pretrained_on(self, finished: Path) -> None:
        images = Corpus(str(finished / "images"))
        [stream] = make_streams(tiny().pretrain, images, None, None, rank=0, workers=1, scale=inline())
        seen = set(zip(stream.config.entries.shard.tolist(), stream.config.entries.row.tolist(), strict=True))
        expected = {
            (shard.shard, row)
            for shard in images.all_shards
            if shard.split in ("train", "unlabeled")
            for row in range(shard.num_rows)
        }
        assert seen == expected
        assert len(seen) == 5000 - 200 - 100

    def test_the_labels_that_were_used_are_listed(self, finished: Path) -> None:
        drawn = {}
        for name in ("supervised", "finetune"):
            table = pq.read_table(finished / name / "labels.parquet")
            assert np.bincount(table["label"].to_numpy()).tolist() == [4] * 10
            drawn[name] = table["image_id"].to_pylist()
            record = json.loads((finished / name / "_record.json").read_text())
            assert record["results"]["labels"] == 40
        assert drawn["supervised"] == drawn["finetune"]
        assert not (finished / "distilled/labels.parquet").exists(), "distillation alone uses no label"
        assert json.loads((finished / "distilled/_record.json").read_text())["results"]["labels"] == 0

    def test_a_pretrained_encoder_gives_features_and_no_classes(self, finished: Path) -> None:
        encoder = load_model(str(finished / "pretrain"))
        pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
        assert encoder.features(pixels).shape == (3, encoder.net.num_features)
        with pytest.raises(ValueError, match="knows no classes"):
            encoder.predict("image.png")

    def test_the_report_says_what_happened(self, finished: Path) -> None:
        page = (finished / "report/report.html").read_text()
        for words in ("gain over supervised", "contrastive accuracy", "neighbours right on validation", "With 40 labels"):
            assert words in page
        assert page.count("<svg") >= 6

    def test_every_label_of_every_image_is_distilled(self, finished: Path) -> None:
        chosen = json.loads((finished / "distilled-chosen/_record.json").read_text())["results"]
        assert sum(chosen["kept"]) == 5000 - 200 - 100 - 100


class TestSwitches:
    def run(self, root: Path, **changes: object) -> Run:
        run = Run(str(root), inline(), echo=lambda line: None)
        small = {"pretrain.schedule.length": 2, "finetune.schedule.length": 2, "supervised": None, "probe": None}
        job.simclrv2(run, override(tiny(), small | {"pretrain.memory": None} | changes))
        return run

    @pytest.mark.slow
    def test_a_live_teacher_mixed_with_labels(self, tmp_path: Path) -> None:
        changes = {
            "distill.pseudo.teacher": "live",
            "distill.mix": "joint",
            "distill.combination": "alpha",
            "distill.alpha": 0.9,
            "distill.schedule.length": 3,
        }
        run = self.run(tmp_path / "live", **changes)
        assert not run.root.exists("distilled-labels"), "nothing is stored"
        history = [json.loads(line) for line in run.root.read_bytes("distilled/history.jsonl").splitlines()]
        last = history[-1]
        assert last["loss"] == pytest.approx(0.1 * last["loss_labeled"] + 0.9 * last["loss_pseudo"], rel=1e-4)

    @pytest.mark.slow
    def test_self_distillation_comes_first_and_teaches(self, tmp_path: Path) -> None:
        base = tiny()
        assert base.distill is not None
        own = override(base.distill, {"net": base.pretrain.net, "schedule.length": 2})
        run = self.run(tmp_path / "both", self_distill=own, **{"distill.schedule.length": 2})
        inputs = run.root.read_json("distilled-labels/_record.json")["inputs"]
        assert inputs["model"] == run.root.read_json("self-distilled/_record.json")["fingerprint"]
        start = run.root.read_json("self-distilled/_record.json")["inputs"]
        assert start["start"] == run.root.read_json("pretrain/_record.json")["fingerprint"]


class TestEvaluation:
    def test_all_protocols(self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = tmp_path / "judged"
        assert call(evaluate_job, "tiny", "--model", str(finished / "pretrain"), "--root", str(root)) == 0
        shown = capsys.readouterr().out
        rows = json.loads((root / "scores.json").read_text())
        models = {row["model"] for row in rows}
        assert models == {"knn", "linear", "linear, 10 labels", "linear, 100 labels", "fine-tuned, 100 labels"}
        assert sum(row["model"].startswith("fine") and row["metric"] == "top1" for row in rows) == 2, "two seeds"
        for model in models:
            assert model in shown
        features = list((root / "features/features").glob("*.parquet"))
        assert sum(pq.read_metadata(path).num_rows for path in features) == 5000

    def test_a_fine_tuned_classifier_begins_with_a_fresh_head(self, finished: Path, tmp_path: Path) -> None:
        settings = [
            "--set",
            "probe.counts=[]",
            "--set",
            "seeds=1",
            "--set",
            "finetune.optim.lr=1e-9",
            "--set",
            "finetune.ema=null",
        ]
        assert call(evaluate_job, "tiny", "--model", str(finished / "finetune"), "--root", str(tmp_path), *settings) == 0
        tuned = load_model(str(tmp_path / "finetuned/100-labels/0")).net
        assert len(tuned.neck) == 1  # type: ignore[arg-type]
        assert float(tuned.head.weight.abs().max()) < 1e-6, "what it knew of labels is gone"  # type: ignore[union-attr]

    def test_a_library_s_classifier(self, tmp_path: Path) -> None:
        run = Run(str(tmp_path / "theirs"), inline(), echo=lambda line: None)
        net = timm.create_model("test_resnet", num_classes=7)
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        weights = str(tmp_path / "net.safetensors")
        config = AdoptConfig(net="timm:test_resnet", weights=weights, weights_hash=hash_of(weights), preprocess={"size": 32})
        model = run("teacher", adopt, config)
        settings = ["--set", "probe.counts=[]", "--set", "seeds=1"]
        assert call(evaluate_job, "tiny", "--model", model.path, "--root", str(tmp_path / "root"), *settings) == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tiny", "--model", "nowhere"], "nowhere is no finished checkpoint"),
            (["tiny", "--model", "PRETRAIN", "--set", "probe.counts=[5]"], "take between 10 and"),
            (["tiny", "--model", "PRETRAIN", "--set", "probe.seeds=0"], "probe.seeds"),
            (["tiny", "--model", "PRETRAIN", "--set", "probe.linear.rates=[]"], "probe.linear.rates"),
            (["tiny", "--model", "PRETRAIN", "--set", "finetune.mix=joint"], "finetune.mix must be labeled"),
            (["tiny", "--model", "PRETRAIN", "--set", 'probe={"linear": null, "knn": null}'], "all probes are off"),
        ],
    )
    def test_bad_input(
        self, arguments: list[str], message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [str(finished / "pretrain") if word == "PRETRAIN" else word for word in arguments]
        assert call(evaluate_job, *words, "--root", str(tmp_path / "root")) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


BAD: list[tuple[str, list[str], str]] = [
    ("workers", ["--set", "scale.train_workers=5"], "more than the 4 parts of the batch (lanes); take at most 4"),
    ("batch", ["--set", "pretrain.batch=63"], "batch 63 does not divide into 4 lanes"),
    ("queue", ["--set", "pretrain.memory.size=1000"], "memory.size 1000 does not hold whole batches of 64"),
    ("labels", ["--set", "subset.count=5"], "5 labels cannot be drawn from 100 of 10 classes; take between 10 and 100"),
    ("share", ["--set", "subset={\"share\": 0.01}"], "1.00% of 100 labels"),
    ("head", ["--set", "finetune.net.projection=3"], "lower it, or deepen pretrain.projection"),
    ("net", ["--set", "finetune.net.multiplier=0.25"], "net.multiplier: 0.125 -> 0.25"),
    ("pixels", ["--set", "pretrain.preprocess.size=64"], "finetune.preprocess differs from pretrain.preprocess"),
    ("small", ["--set", "pretrain.preprocess.size=64", "--set", "finetune.preprocess.size=64"], "smaller than the crop: 28 pixels"),
    ("live", ["--set", "finetune.pseudo.teacher=live", "--set", "supervised.mix=joint"], "supervised"),
    ("recipe", ["nothing"], "the recipes are demo, tiny, fashion, paper"),
    ("rate", ["--set", "pretrain.optim.lr=1e30", "--set", "pretrain.optim.name=sgd"], "not finite since step"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_input(name: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_name = [] if name == "recipe" else ["tiny"]
    short = ["--set", "pretrain.schedule.length=3", "--set", "supervised=null", "--set", "probe=null"] if recipe_name else []
    code = call(job, *recipe_name, *short, *arguments, "--root", str(tmp_path / "root"))
    error = capsys.readouterr().err
    assert message in error
    assert code == (3 if name == "rate" else 2)
    assert error.count("\n") == 1


class TestRecipes:
    def test_the_paper_s_numbers(self) -> None:
        chosen = paper()
        assert chosen.pretrain.optim.peak(4096) == pytest.approx(6.4)
        assert (chosen.pretrain.schedule.length, chosen.pretrain.schedule.warmup) == (800, 40)
        assert chosen.finetune.optim.peak(1024) == pytest.approx(0.064)
        assert recipe("paper-r50-1pct").finetune.optim.peak(1024) == pytest.approx(0.16)
        assert recipe("paper-r50-10pct").finetune.schedule.length == 30
        assert chosen.pretrain.memory is not None
        assert (chosen.pretrain.memory.size, chosen.pretrain.memory.ema) == (65536, 0.999)
        assert chosen.self_distill is not None
        assert chosen.self_distill.pseudo.temperature == chosen.self_distill.pseudo.student_temperature == 0.1

    @pytest.mark.parametrize(("name", "labels", "epochs", "rate"), [
        ("paper-r50-1pct", 12_811, 60, 0.16), ("paper-r50-10pct", 128_116, 30, 0.16), ("paper-r152-3x-sk-1pct", 12_811, 60, 0.064),
    ])  # fmt: skip
    def test_shares_of_the_paper(self, name: str, labels: int, epochs: int, rate: float) -> None:
        chosen = recipe(name)
        assert chosen.images.labels == labels
        assert chosen.finetune.schedule.length == epochs
        assert chosen.finetune.optim.peak(1024) == pytest.approx(rate)
        assert chosen.distill is not None
        assert chosen.distill.schedule.length * 4096 == pytest.approx(400 * 1_281_167)

    @pytest.mark.parametrize("name", list(RECIPES))
    def test_every_recipe_builds(self, name: str) -> None:
        chosen = recipe(name)
        with torch.device("meta"):
            assert build_encoder(chosen.pretrain.net, chosen.pretrain.projection, load=False).num_features > 0


class TestSubset:
    labels = np.random.default_rng(0).integers(0, 7, 900)

    def test_the_smaller_draw_is_part_of_the_larger(self) -> None:
        draws = [set(draw_subset(self.labels, SubsetConfig(share=share, seed=3)).tolist()) for share in (0.01, 0.1, 0.5)]
        assert draws[0] < draws[1] < draws[2]
        assert [len(draw) for draw in draws] == [9, 90, 450]

    def test_every_class_is_there(self) -> None:
        assert len(np.unique(self.labels[draw_subset(self.labels, SubsetConfig(count=7))])) == 7
