"""HPT from its command line: phases, what passes on, looks, restarts, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ssl_ray.pipelines.hpt as job
from ssl_ray.artifacts import Checkpoint, Corpus
from ssl_ray.cli import run_job
from ssl_ray.config import fingerprint, override
from ssl_ray.data.loader import host_batches
from ssl_ray.errors import ConfigError, SourceError
from ssl_ray.methods.moco import MoCo
from ssl_ray.nets import build_encoder
from ssl_ray.recipes.hpt import RECIPES, SETS, HPTRecipe, ImageSet, paper, recipe, tiny
from ssl_ray.scale import inline
from ssl_ray.settings.nets import NetConfig, ProjectionConfig
from ssl_ray.settings.pretraining import MoCoConfig, SimCLRConfig
from ssl_ray.stage import Run
from ssl_ray.stages.report_hpt import fewer_steps
from ssl_ray.stages.snapshot import SnapshotConfig, snapshot
from ssl_ray.train.loop import Loop
from ssl_ray.train.streams import make_streams

REPO = Path(__file__).parent.parent.parent
STRATEGIES = '["base-raw", "base", "target", "hpt", "hpt-bn", "hpt-bn-affine", "chain"]'
SOURCE = '{"between": {"images": {"labeled": "sample:mnist5k", "labels": 50, "test_images": 100, "seed": 3}}}'
SETTINGS = [
    "--set", f"strategies={STRATEGIES}", "--set", f"sources={SOURCE}", "--set", 'variants={"crop": {"view.jitter": 0}}',
    "--set", "base_steps=[3]", "--set", "variant_strategies=[\"hpt\"]", "--set", "finetune.rates=[0.1, 0.01]",
]  # fmt: skip


def call(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job", *arguments, "--scale", "inline"])
        return run_job(job.main)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hpt") / "root"
    assert call("tiny", "--root", str(root), *SETTINGS) == 0
    return root


def weights(root: Path, phase: str) -> dict[str, torch.Tensor]:
    return load_file(root / "phases" / phase / "model.safetensors")


def backbone(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in found.items() if key.startswith("backbone.")}


class TestPhases:
    def test_every_strategy_is_looked_at_at_its_steps(self, finished: Path) -> None:
        rows = json.loads((finished / "report/_record.json").read_text())["results"]["rows"]
        steps: dict[str, list[int]] = {}
        for row in rows:
            if not row["variant"]:
                steps.setdefault(row["strategy"], []).append(row["step"])
        assert steps == {
            "base-raw": [0], "base": [3], "target": [2, 4, 8], "hpt": [2, 4], "hpt-bn": [3], "hpt-bn-affine": [3],
            "chain": [2, 4],
        }  # fmt: skip
        assert {row["variant"] for row in rows} == {"", "crop", "base-3"}

    def test_only_the_backbone_passes_on(self, finished: Path) -> None:
        """What norms alone learned from: the parameters of the base, bit by bit, and other statistics."""
        base, parameters = weights(finished, "base"), {name for name, _ in self.encoder().named_parameters()}
        for phase, affine in (("digits-base", False), ("digits-hpt-bn", False), ("digits-hpt-bn-affine", True)):
            found = weights(finished, phase)
            for key, value in backbone(found).items():
                same = torch.equal(value, base[key])
                if key in parameters and not (affine and value.ndim == 1):
                    assert same, (phase, key)
                elif key.endswith("running_mean"):
                    assert not same, (phase, key)
            assert not torch.equal(found["projection.layers.0.weight"], base["projection.layers.0.weight"])

    @staticmethod
    def encoder() -> torch.nn.Module:
        return build_encoder(tiny().net, ProjectionConfig(layers=1, dim=64, norm=False))

    def test_the_chain_goes_through_the_source(self, finished: Path) -> None:
        def started(phase: str) -> str:
            return str(json.loads((finished / "phases" / phase / "_record.json").read_text())["inputs"]["start"])

        def mark(phase: str) -> str:
            return Checkpoint(str(finished / "phases" / phase)).fingerprint

        assert started("digits-chain") == mark("base-between")
        assert started("base-between") == mark("base")
        assert started("digits-hpt") == mark("base")
        assert "start" not in json.loads((finished / "phases/digits-target/_record.json").read_text())["inputs"]

    def test_snapshots_are_the_training_at_their_step(self, finished: Path, tmp_path: Path) -> None:
        """Bit by bit what two steps of the same schedule give; another step was not kept."""
        model = Checkpoint(str(finished / "phases/digits-target"))
        config, images = MoCoConfig.model_validate(model.record.config), Corpus(str(finished / "images/digits"))
        loop = Loop(MoCo(config), None, steps=2, steps_per_epoch=1.0, device=torch.device("cpu"))
        streams = make_streams(config, images, None, None, rank=0, workers=1, scale=inline())
        loop.run(host_batches(streams, 0, 2), log_steps=1, log=lambda entry: None, save_steps=100, save=lambda: None)
        kept, ours = load_file(finished / "at/digits-target/2/model.safetensors"), loop.model.used.state_dict()
        assert all(torch.equal(kept[key], ours[key]) for key in ours)
        run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
        with pytest.raises(ConfigError, match="kept nothing after step 5"):
            run("at", snapshot, SnapshotConfig(step=5), model=model)

    def test_a_grid_is_chosen_from_on_validation(self, finished: Path) -> None:
        found = json.loads((finished / "report/_record.json").read_text())["results"]
        assert all(part["cells"] == 2 and part["labels"] == 20 for part in found["grid"])
        for part in found["grid"]:
            cells = [row for row in found["scores"] if row["model"].startswith(f"digits-{part['strategy']}/20")]
            by_val = max(
                (row for row in cells if row["split"] == "val" and row["metric"] == "top1"), key=lambda row: row["value"]
            )
            test = next(r for r in cells if r["model"] == by_val["model"] and r["split"] == "test" and r["metric"] == "top1")
            assert part["top1"] == test["value"]

    def test_scores_can_be_told_apart(self, finished: Path) -> None:
        rows = json.loads((finished / "scores.json").read_text())
        assert len({(row["model"], row["seed"], row["split"], row["metric"]) for row in rows}) == len(rows)
        assert {"digits/target/2 linear", "digits/hpt--crop/end knn"} <= {row["model"] for row in rows}

    def test_a_variant_differs_by_its_change_alone(self, finished: Path) -> None:
        plain, changed = (
            json.loads((finished / "phases" / name / "_record.json").read_text())["config"]
            for name in ("digits-hpt", "digits-hpt--crop")
        )
        different = {key for key in plain if plain[key] != changed[key]}
        assert different == {"view", "snapshots"}

    def test_more_strategies_later(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What only sums up is computed anew, without being asked; what was trained is not."""
        fewer = [*SETTINGS, "--set", 'strategies=["base-raw", "target", "hpt"]', "--plan", "stages"]
        assert call("tiny", "--root", str(finished), *fewer) == 0
        state = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
        assert "would be computed" in state["best/digits"]
        assert "would be computed" in state["report"]
        assert all("is finished" in line for name, line in state.items() if name not in ("best/digits", "report"))

    def test_the_report(self, finished: Path) -> None:
        text = (finished / "report/report.html").read_text()
        for words in ("hpt-bn-affine", "Accuracy against steps", "against the strategy unchanged", "base-3", "20 labels"):
            assert words in text, words
        assert text.count("<svg") == 1

    def test_a_second_call_recomputes_nothing(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("tiny", "--root", str(finished), *SETTINGS) == 0
        assert " starts" not in capsys.readouterr().out

    def test_a_later_phase_leaves_the_earlier_ones_alone(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """--plan says so: only what stands on the changed phase would be computed."""
        changed = ["--set", "hpt.schedule.length=5", "--plan", "stages"]
        assert call("tiny", "--root", str(finished), *SETTINGS, *changed) == 2
        assert "stage phases/digits-hpt was run with other settings" in capsys.readouterr().err
        again = ["--rerun", "phases/base-between", "--rerun", "phases/digits-hpt"]
        assert call("tiny", "--root", str(finished), *SETTINGS, "--plan", "stages", *again) == 0
        lines = capsys.readouterr().out.splitlines()
        state = {line.split()[0]: line for line in lines if line.strip()}
        for untouched in ("phases/base", "phases/digits-target", "phases/digits-hpt-bn", "probe/digits-target/2"):
            assert "is finished" in state[untouched], untouched
        for renewed in ("phases/digits-hpt", "phases/digits-chain", "probe/digits-hpt/end", "report"):
            assert "would be computed" in state[renewed], renewed


@pytest.mark.slow
def test_killed_in_every_phase_it_ends_with_the_same_encoders(finished: Path, tmp_path: Path) -> None:
    """SIGKILL in the first step of three phases; finished ones are not run again, and the last encoders are bit-equal."""
    command = [sys.executable, "jobs/hpt.py", "tiny", "--scale", "inline", "--root", str(tmp_path / "root"),
               *SETTINGS, "--set", "scale.checkpoint_steps=1", "--set", "finetune=null", "--set", "variants={}",
               "--set", "base_steps=[]"]  # fmt: skip
    seen: list[str] = []
    for phase in ("phases/base ", "phases/digits-hpt ", "phases/digits-chain "):
        seen = _until_killed(command, phase)
        assert any(line.startswith(f"> {phase}") for line in seen), phase
    assert any(line.startswith("= phases/digits-target") for line in seen), "what was finished is loaded"
    answer = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "> phases/digits-chain goes on with what is saved" in " ".join(answer.stdout.split())
    for phase in ("base", "digits-target", "digits-hpt", "digits-chain"):
        ours, theirs = weights(tmp_path / "root", phase), weights(finished, phase)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), phase


def _until_killed(command: list[str], phase: str) -> list[str]:
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines, inside = [], False
    for line in process.stdout:
        lines.append(line)
        inside = inside or line.startswith(f"> {phase}")
        if inside and line.startswith("step 2/"):  # a checkpoint of step 1 is there
            process.kill()
            break
    process.wait()
    return lines


class TestBeginnings:
    def test_a_file_of_weights(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        net = override(NetConfig(), {"width": 8, "stem_stride": 2})
        file = tmp_path / "weights.safetensors"
        given = build_encoder(net, ProjectionConfig(layers=1))
        save_file({key: value.contiguous() for key, value in given.backbone.state_dict().items()}, file)
        root = tmp_path / "root"
        few = ["--set", 'strategies=["base-raw", "hpt"]', "--set", "finetune=null", "--set", "hpt.snapshots=[]"]
        assert call("tiny", "--root", str(root), "--set", "base_images=null", "--set", f"net.weights={file}", *few) == 0
        found = backbone(load_file(root / "phases/base/model.safetensors"))
        assert all(torch.equal(found[f"backbone.{key}"], value) for key, value in given.backbone.state_dict().items())
        assert json.loads((root / "phases/digits-hpt/model.json").read_text())["net"]["weights"] is None

    def test_a_checkpoint_and_images_without_labels(
        self, finished: Path, tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The use that people ask for: go on pretraining on my own images. No label, no score, and an encoder: HPT's."""
        photos = make_folder("photos", {"": 40}, (32, 32))
        root, start = tmp_path / "root", str(finished / "phases/base")
        assert call("tiny", "--root", str(root), "--start", start, "--unlabeled", str(photos)) == 0
        out = capsys.readouterr().out
        assert "own: 4 steps of hpt on 40 images; there are no labels to judge by" in out
        assert "note: a queue of 128 keys for 40 images" in out
        assert (root / "report/report.html").read_text().count("<svg") >= 4
        assert f"--model {root / 'best/own'} --labeled" in out
        ours, theirs = (load_file(root / name / "model.safetensors") for name in ("best/own", "phases/own-hpt"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert not (root / "probe").exists()
        assert sorted(path.name for path in (root / "phases").iterdir()) == ["own-hpt"]

    def test_a_fine_tuned_checkpoint_and_labeled_images_alone(
        self, finished: Path, tmp_path: Path, make_folder: Callable[..., Path]
    ) -> None:
        """Of a classifier the backbone is taken; labeled images are enough."""
        train, test = (make_folder(name, {"cat": 20, "dog": 20}, (32, 32)) for name in ("labeled", "test"))
        root, start = tmp_path / "root", str(finished / "finetuned/digits-hpt/20-labels/0.1-0")
        few = ["--set", 'strategies=["hpt"]', "--set", "finetune.labels=[8]", "--set", "finetune.rates=[0.1]"]
        assert call("tiny", "--root", str(root), "--start", start, "--labeled", str(train), "--test", str(test), *few) == 0
        found = json.loads((root / "report/_record.json").read_text())["results"]
        assert found["grid"][0]["labels"] == 8

    def test_any_method_stands_in_a_phase(self, finished: Path, tmp_path: Path) -> None:
        chosen = override(
            tiny(),
            {
                "hpt": SimCLRConfig(batch=32, projection=ProjectionConfig(layers=2, dim=16), schedule={"length": 2}),  # type: ignore[arg-type]
                "strategies": ("hpt",),
                "finetune": None,
            },
        )
        chosen = override(chosen, {"hpt.temperature": 0.5, "hpt.reduction": "mean"})
        assert isinstance(chosen.hpt, SimCLRConfig)
        run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
        job.hpt(run, chosen, Checkpoint(str(finished / "phases/base")))
        assert json.loads((tmp_path / "root/phases/digits-hpt/model.json").read_text())["method"] == "simclr"

    def test_nothing_to_go_on_from(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("tiny", "--root", str(tmp_path / "root"), "--set", "base_images=null") == 2
        assert "there is nothing to go on from: give --start" in capsys.readouterr().err


class TestBadInput:
    def refused(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
        assert call("tiny", "--root", str(tmp_path / "root"), *arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    def test_a_queue_that_the_batch_does_not_fit(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "hpt" in (text := self.refused(capsys, tmp_path, "--set", "hpt.queue=100"))
        assert "queue=100 does not hold whole steps of 32 keys" in text

    def test_a_checkpoint_of_another_net(self, finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        start = str(finished / "phases/base")
        text = self.refused(capsys, tmp_path, "--start", start, "--set", "net.width=16")
        assert "net.width: 8 -> 16" in text
        assert not (tmp_path / "root/images").exists(), "said before anything is computed"

    def test_fewer_labels_than_classes_is_said_before_the_first_phase(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        text = self.refused(capsys, tmp_path, "--set", "finetune.labels=[7]")
        assert "7 labels cannot be drawn" in text
        assert not (tmp_path / "root/phases").exists()

    def test_a_grid_without_validation(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        text = self.refused(
            capsys, tmp_path, "--set", "targets.digits.images.val_images=0", "--set", "finetune.rates=[0.1, 0.2]"
        )
        assert "a grid of 2 fine-tunings is chosen from on validation images, and digits has none" in text

    def test_a_phase_without_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Corpus, "num_images", lambda self, split: 0)
        run = Run(str(tmp_path / "root"), inline(), echo=lambda line: None)
        with pytest.raises(SourceError, match="no labeled or unlabeled images"):
            job.hpt(run, tiny())
        assert not (tmp_path / "root/phases").exists()

    def test_a_mistyped_target_or_variant(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        text = self.refused(capsys, tmp_path, "--set", "targets.digit.images.val_images=50")
        assert "this set names no images; is its name mistyped?" in text
        text = self.refused(capsys, tmp_path, "--set", 'variants={"x": {"view.jiter": 0}}')
        assert "variants.x: unknown setting 'view.jiter'" in text

    def test_workers_that_do_not_fit_a_later_phase(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        text = self.refused(capsys, tmp_path, "--set", "hpt.lanes=1", "--set", "scale.train_workers=2")
        assert "2 training workers are more than the 1 parts of the batch (lanes); take at most 1" in text
        assert not (tmp_path / "root/images").exists()

    def test_test_images_without_labeled_ones(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "--test needs --labeled" in self.refused(capsys, tmp_path, "--test", str(tmp_path))

    def test_images_smaller_than_the_crops(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "smaller than the crop" in self.refused(capsys, tmp_path, "--set", "preprocess.size=64")

    def test_names(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "becomes a folder" in self.refused(capsys, tmp_path, "--set", 'variants={"../x": {}}')
        text = self.refused(capsys, tmp_path, "--set", 'strategies=["chain"]')
        assert "needs a source" in text
        assert "no snapshots of the base" in self.refused(capsys, tmp_path, "--set", "base_steps=[4]")

    def test_an_unknown_path_below_a_name(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        text = self.refused(capsys, tmp_path, "--set", "targets.digits.images.lables=4")
        assert "unknown setting" in text
        assert "targets.NAME.images.labels" in text.split("one of ")[1].split(", ")[:3]


def test_all_settings_are_shown_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    assert call("tiny", "--root", str(root), "--set", "hpt.ema=0.5", "--settings") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"hpt.ema=0.5", "targets.digits.images.labels=200", "scale.train_workers=0"} <= set(lines)
    assert not root.exists()


class TestRecipes:
    @pytest.mark.parametrize("name", RECIPES)
    def test_they_are_valid_and_named(self, name: str) -> None:
        chosen = recipe(name)
        assert HPTRecipe.model_validate(chosen.model_dump(mode="json")) == chosen
        assert fingerprint(chosen)

    def test_the_papers_values(self) -> None:
        """From the authors' code, as `docs/hpt.md` lists them."""
        chosen = paper()
        for phase in (chosen.base, chosen.target, chosen.hpt, chosen.norms):
            assert phase.method == "moco"
            assert (phase.queue, phase.projection.dim, phase.ema, phase.temperature) == (65536, 128, 0.999, 0.2)
            assert (phase.optim.lr, phase.optim.momentum, phase.optim.weight_decay) == (0.03, 0.9, 1e-4)
            assert not phase.optim.nesterov
            assert phase.optim.decay_all
            assert (phase.batch, phase.view.crop, phase.view.grey, phase.view.blur) == (256, 0.2, 0.2, 0.5)
        assert (chosen.hpt.view.hue, chosen.base.view.hue) == (0.4, 0.1)
        assert (chosen.hpt.batch_norm, chosen.base.batch_norm) == (64, 32)
        assert chosen.hpt.snapshots == (50, 500, 5000)
        assert len(SETS) == 16


class TestFewerSteps:
    @staticmethod
    def rows(strategy: str, course: dict[int, float]) -> list[dict[str, object]]:
        return [{"strategy": strategy, "step": step, "val": value, "linear": value - 0.1} for step, value in course.items()]

    def test_the_first_step_that_is_as_good(self) -> None:
        rows = self.rows("target", {100: 0.5, 1000: 0.8, 2000: 0.7}) + self.rows("hpt", {10: 0.6, 50: 0.8, 100: 0.9})
        found = fewer_steps(rows)
        assert found is not None
        assert (found["slow_step"], found["quick_step"], found["times"]) == (1000, 50, 20)
        assert found["slow_linear"] == pytest.approx(0.7)

    def test_never(self) -> None:
        found = fewer_steps(self.rows("target", {100: 0.9}) + self.rows("hpt", {10: 0.6}))
        assert found is not None
        assert found["times"] is None

    def test_one_alone(self) -> None:
        assert fewer_steps(self.rows("hpt", {10: 0.6})) is None


def test_sets_have_their_own_pixel_statistics(tmp_path: Path) -> None:
    chosen = override(tiny(), {"strategies": ("hpt",), "finetune": None, "hpt.snapshots": ()})
    digits = chosen.targets["digits"].model_copy(update={"mean": (0.1, 0.1, 0.1), "std": (0.3, 0.3, 0.3)})
    chosen = chosen.model_copy(update={"targets": {"digits": ImageSet.model_validate(digits)}})
    job.hpt(Run(str(tmp_path / "root"), inline(), echo=lambda line: None), chosen)
    means = [json.loads((tmp_path / "root/phases" / name / "model.json").read_text())["preprocess"]["mean"] for name in
             ("base", "digits-hpt")]  # fmt: skip
    assert means == [[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]
