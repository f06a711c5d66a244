"""A sweep: which trials there are, what each leaves behind, and what they have in common.

A trial is a job's own function under a root that all trials share: a stage lies in a folder named after its fingerprint,
so that whoever needs it first computes it, and the others find it. What a trial leaves is `trials/NAME/trial.json`, written
last.
"""

from __future__ import annotations

import math
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

from ssl_ray.artifacts import Artifact, Checkpoint, Corpus, Report, Scores
from ssl_ray.config import flatten, override
from ssl_ray.damage import STARTED
from ssl_ray.data.sources import ImagesConfig, check_folders
from ssl_ray.errors import ConfigError, DamagedError, SslRayError
from ssl_ray.filesystems import absolute
from ssl_ray.grids import Trial, identity, parse_range
from ssl_ray.progress import time_left
from ssl_ray.recipes.sweep import WORDS, SweepRecipe, changes_of, seed_changes
from ssl_ray.redaction import redact
from ssl_ray.scale import Scale
from ssl_ray.stage import SHARED, Run
from ssl_ray.stages.evaluate import HEADLINE
from ssl_ray.storage import Folder
from ssl_ray.tune.results import reported
from ssl_ray.tune.trials import JUDGED, OBJECTIVE, Tracker, run_trials

FUNCTIONS = {"evaluate": "evaluation"}
"""The function of a job, where it is not named as its module."""

TRIAL, PARTIAL = "trial.json", "partial.json"


@dataclass
class Sweep:
    """A sweep on its way: what every trial computes, and where its result lies."""

    recipe: SweepRecipe
    given: list[str]  # which settings, and whether the user's own images are among them
    root: str
    scale: Scale
    load: Callable[[str], Any]  # the module of a job: `base`, and its function
    _base: Any = field(default=None, repr=False)

    @property
    def base(self) -> Any:
        """The job's recipe before a trial changes it.

        Raises:
            ConfigError: an unknown recipe or setting.
        """
        if self._base is None:
            found = self.load(self.recipe.job).base(self.recipe.recipe, self.given)
            self._base = override(found, self.recipe.settings)
        return self._base

    def settled(self, trial: Trial) -> Any:
        """The job's recipe of one trial.

        Raises:
            ConfigError: an unknown path or a value that does not fit; the trial is named.
        """
        changes = changes_of(self.recipe, self.base, trial.point)
        changes |= seed_changes(self.recipe, self.base, changes, trial.seed)
        try:
            return override(self.base, changes)
        except ConfigError as error:
            words = WORDS[self.recipe.job].words
            unknown = "unknown setting" in str(error)
            for axis in trial.point if unknown else ():
                if repr(axis) in str(error) and (near := get_close_matches(axis, words, n=1)):
                    raise ConfigError(
                        f"there is no axis {axis!r}; did you mean {near[0]}? Words of this job: {', '.join(words)}"
                    ) from None
            more = f"; words of this job: {', '.join(words)}" if words and unknown else ""
            raise ConfigError(f"{trial.name}: {error}{more}") from None

    def run(self, trial: Trial, run: Run) -> Report:
        """The job's own function."""
        function = getattr(self.load(self.recipe.job), FUNCTIONS.get(self.recipe.job, self.recipe.job))
        more = [self.model] if self.model is not None else []
        report: Report = function(run, self.settled(trial), *more)
        return report

    @property
    def model(self) -> Checkpoint | None:
        """The checkpoint that all trials judge, where the job judges one.

        Raises:
            ConfigError: there is none where the user said.
        """
        return None if self.recipe.model is None else Checkpoint.named(self.recipe.model)

    def place(self, trial: Trial) -> Folder:
        return Folder(self.root) / "trials" / trial.name

    def identity(self, trial: Trial) -> str:
        model = None if self.model is None else self.model.fingerprint
        return identity(self.recipe.job, self.settled(trial), trial.seed, model)

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """What a trial left, if it ended with these settings."""
        place = self.place(trial)
        found = left_by(place, TRIAL)
        return found if found is not None and found["identity"] == self.identity(trial) else None


def run_trial(sweep: Sweep, config: Mapping[str, Any], report: Callable[[Mapping[str, Any]], None]) -> None:
    """One trial, in whatever process; `trial.json` is written last. A failure is a result too."""
    trial = Trial(config.get("point", config), config.get("seed", sweep.recipe.first_seed))
    if (known := sweep.result(trial)) is not None and not known["error"] and not known["stopped"]:
        return  # a searcher proposes the same point again
    began, judged = time.time(), 0
    runs: list[Run] = []

    def left(error: str | None = None, code: int = 0, scores: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        return result_of(sweep, trial, runs[0] if runs else None, scores or [], time.time() - began, error, code)

    seen: list[dict[str, Any]] = []

    def watch(artifact: Artifact) -> None:
        nonlocal judged
        if isinstance(artifact, Scores):
            judged += 1
            seen.extend(artifact.rows)
            sweep.place(trial).write_sealed(PARTIAL, left(scores=seen))
            report({JUDGED: judged, **told(artifact.rows)})

    sweep.place(trial).remove(TRIAL)  # of an earlier try that failed, or of other settings
    try:
        runs.append(Run(sweep.root, sweep.scale, shared=True, judged=watch, echo=lambda line: None))
        found = sweep.run(trial, runs[0])
        result = left(scores=found.results["scores"])
    except SslRayError as error:
        result = left(" ".join(str(error).split()), error.exit_code, seen)
    except Exception as error:
        sweep.place(trial).write_bytes("error.txt", redact(traceback.format_exc()).encode())
        result = left(redact(f"{type(error).__name__}: {' '.join(str(error).split())}"), 1, seen)
    sweep.place(trial).write_sealed(TRIAL, result)
    if result["error"] and sweep.recipe.search:
        report({JUDGED: judged + 1, OBJECTIVE: -math.inf})  # else a searcher takes its teacher's score for its own


def told(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What schedulers, searchers and trackers hear of a judged model: the objective is its score on validation images alone.
    MLflow refuses most signs in a name."""
    found: dict[str, float] = {}
    heads = {metric for metric, _ in HEADLINE.values()}
    for row in rows:
        found[re.sub(r"[^\w\-. /]", "_", f"{row['split']}/{row['metric']}/{row['model']}")] = row["value"]
        if row["split"] == "val" and row["metric"] in heads:
            found[OBJECTIVE] = row["value"]
    return found


def result_of(
    sweep: Sweep, trial: Trial, run: Run | None, scores: list[dict[str, Any]], seconds: float, error: str | None, code: int
) -> dict[str, Any]:
    """What a trial leaves behind."""
    parts = {name: part.record for name, part in (run.stages if run else {}).items()}
    cost = sum(record.wall_s for name, record in parts.items() if name != "report")
    return {
        "name": trial.name,
        "job": f"{sweep.recipe.job}:{sweep.recipe.recipe}",
        "point": dict(trial.point),
        "seed": trial.seed,
        "identity": sweep.identity(trial),
        "labels": labels_of(trial, run),
        "scores": scores,
        "stages": {name: {"fingerprint": record.fingerprint, "wall_s": record.wall_s} for name, record in parts.items()},
        "computed": run.computed if run else [],
        "took_s": round(seconds, 3),
        "seconds": round(cost, 3),
        "model_s": costs_of(run.stages if run else {}),
        "checkpoints": [name for name, part in (run.stages if run else {}).items() if isinstance(part, Checkpoint)],
        "summary": headline(scores),
        "stopped": False,
        "error": error,
        "exit_code": code,
    }


def costs_of(stages: Mapping[str, Artifact]) -> dict[str, float]:
    """What a judged model costs: seconds of its stage and of all that it stands on, by the model's name in the scores."""
    parts = {part.record.fingerprint: part.record for part in stages.values()}
    found: dict[str, float] = {}
    for part in stages.values():
        if isinstance(part, Scores):
            below, pending = set[str](), [part.record.fingerprint]
            while pending:
                if (mark := pending.pop()) not in below:
                    below.add(mark)
                    inputs = flatten(parts[mark].inputs).values()  # of fingerprints, and plain values
                    pending += [other for other in inputs if isinstance(other, str) and other in parts]
            seconds = round(sum(parts[mark].wall_s for mark in below), 3)
            found |= dict.fromkeys((row["model"] for row in part.rows), seconds)
    return found


def labels_of(trial: Trial, run: Run | None) -> float | None:
    """How many labels a trial learned from, where the sweep says so."""
    if "labels" in trial.point:
        return float(trial.point["labels"])
    images = run.stages.get("images") if run is not None else None
    if "label_fraction" in trial.point and isinstance(images, Corpus):
        return float(round(trial.point["label_fraction"] * images.results["images"]["train"]))
    return None


def headline(scores: list[dict[str, Any]]) -> str:
    """A trial in a few words: what its models reached on test."""
    heads = dict(HEADLINE.values())
    shown = {row["model"]: row for row in scores if row["split"] == "test" and row["metric"] in heads}
    return ", ".join(f"{name} {row['value']:.1%}" for name, row in list(shown.items())[:4])


def planned(sweep: Sweep, trials: list[Trial], rerun: Sequence[str] = ()) -> dict[str, set[str]]:
    """The stages of all trials, as far as settings alone say: name -> fingerprints. Bad settings are found here, before work.

    Raises:
        ConfigError: as the jobs do; or a stage in `rerun` was never run.
    """
    for name in rerun:
        marks_of(Folder(sweep.root), name)
    stages: dict[str, set[str]] = {}
    looked: set[tuple[str | None, ...]] = set()
    for trial in trials:
        run = Run(sweep.root, sweep.scale, rerun, shared=True, plan=True, echo=lambda line: None)
        try:
            sweep.run(trial, run)
        except ConfigError as error:
            raise ConfigError(f"{error}" if trial.name in str(error) else f"{trial.name}: {error}") from None
        for name, part in run.stages.items():
            stages.setdefault(name, set()).add(part.record.fingerprint)
            # Of images that are still to be listed; those of a finished stage may have gone since.
            if part.record.stage == "ingest" and not part.record.computed:
                images = ImagesConfig.model_validate(part.record.config)
                sources = (images.labeled, images.unlabeled, images.test)
                if sources not in looked:
                    check_folders(images)
                    looked.add(sources)
    return stages


def run_sweep(
    sweep: Sweep, trials: list[Trial], *, searcher: bool = False, asha: bool = False, trackers: Sequence[Tracker] = ()
) -> Report:
    """All trials that are not finished yet, then the report."""
    root, began = Folder(sweep.root), time.time()
    before = [trial for trial in trials if sweep.result(trial) is not None]
    # What a scheduler stopped is run to its end, where none is asked for any more.
    todo = [
        trial for trial in trials if (found := sweep.result(trial)) is None or found["error"] or (found["stopped"] and not asha)
    ]
    if before and not searcher:
        print(f"{len(trials) - len(todo)} of {len(trials)} trials are finished", flush=True)
    ended: list[dict[str, Any]] = []
    known: list[tuple[dict[str, Any], float]] = []
    ranges = dict(parse_range(f"{path}={text}") for path, text in sweep.recipe.search.items())
    if searcher:  # a sampler takes no point outside its ranges, as those of an earlier call may be
        known = [
            (point, value) for point, value in known_points(sweep) if all(ranges[path].holds(point[path]) for path in point)
        ]
        print(f"{len(known)} of {sweep.recipe.trials} trials are finished", flush=True)
    wanted = len(todo) if not searcher else max(0, sweep.recipe.trials - len(known))

    def name_of(config: Mapping[str, Any]) -> str:
        return Trial(config.get("point", config), config.get("seed", sweep.recipe.first_seed)).name

    def done(config: Mapping[str, Any], death: str | None) -> None:
        trial = Trial(config.get("point", config), config.get("seed", sweep.recipe.first_seed))
        result = closed(sweep, trial, death)
        ended.append(result)
        state = f"failed: {result['error']}" if result["error"] else result["summary"]
        early = "stopped early: " if result["stopped"] else ""
        left = time_left(len(ended), wanted, time.time() - began)
        print(f"{len(ended)}/{wanted}  {trial.name}  {early}{state}  ({result['took_s']:.0f} s){left}", flush=True)

    common: dict[str, Any] = {"storage": absolute((root / "tune").path), "done": done, "name_of": name_of, "asha": asha}
    if searcher and wanted:
        run_trials(
            partial(run_trial, sweep),
            [],
            sweep.scale,
            name="search",
            optuna=ranges,
            count=wanted,
            # With the same seed a sampler proposes the same points again.
            seed=sweep.recipe.first_seed + len(found_trials(sweep)),
            known=known,
            trackers=trackers,
            **common,
        )
    elif todo and not searcher:
        points = [{"point": dict(trial.point), "seed": trial.seed} for trial in todo]
        run_trials(partial(run_trial, sweep), points, sweep.scale, name="trials", trackers=trackers, **common)
    results = (
        [result for trial in trials if (result := sweep.result(trial)) is not None] if not searcher else found_trials(sweep)
    )
    if ended:
        print(accounted(ended, time.time() - began), flush=True)
    return reported(sweep.root, sweep.recipe, sweep.scale, results)


def left_by(place: Folder, name: str) -> dict[str, Any] | None:
    """Read what a trial left. A damaged file counts as none: its stages are finished, so the trial is quickly done again."""
    try:
        return place.read_sealed(name) if place.exists(name) else None
    except DamagedError as error:
        print(f"{error.args[0].split(';')[0]}; the trial is computed again from its stages", flush=True)
        return None


def closed(sweep: Sweep, trial: Trial, death: str | None) -> dict[str, Any]:
    """The result of a trial that ended; what a scheduler stopped, or a dead worker left, is written down by us."""
    result = sweep.result(trial)
    place = sweep.place(trial)
    if result is None:
        partly = left_by(place, PARTIAL) or {}
        if partly.get("identity") != sweep.identity(trial):
            partly = result_of(sweep, trial, None, [], 0.0, None, 0)
        result = partly | {
            "stopped": death is None,
            "error": death and f"its worker died: {death}",
            "exit_code": 1 if death else 0,
        }
        place.write_sealed(TRIAL, result)
    return result


def found_trials(sweep: Sweep) -> list[dict[str, Any]]:
    """All results under the root: a searcher's points are nobody's list."""
    folder = Folder(sweep.root) / "trials"
    results = [found for name in folder.all_names(TRIAL) if (found := left_by(folder, name)) is not None]
    mine = f"{sweep.recipe.job}:{sweep.recipe.recipe}"
    ours = [found for found in results if found["job"] == mine and set(found["point"]) == set(sweep.recipe.search)]
    return [found for found in ours if found["identity"] == sweep.identity(Trial(found["point"], found["seed"]))]


def known_points(sweep: Sweep) -> list[tuple[dict[str, Any], float]]:
    """Points with their objective, for a searcher that goes on."""
    found = []
    for result in found_trials(sweep):
        values = [told([row]).get(OBJECTIVE) for row in result["scores"]]
        known = [value for value in values if value is not None]
        if known and not result["error"]:
            found.append((result["point"], known[-1]))
    return found


def accounted(results: list[dict[str, Any]], wall_s: float) -> str:
    """What this call computed, against the time it took."""
    work = sum(result["stages"][name]["wall_s"] for result in results for name in result["computed"] if name != "report")
    apart = sum(result["seconds"] for result in results)
    ratio = f" ({wall_s / work:.2f} times)" if work else ""
    return (
        f"this call: {work:,.0f} s of different work in {wall_s:,.0f} s{ratio}; had every trial done all that it stands on, "
        f"the work would be {apart:,.0f} s"
    )


def marks_of(root: Folder, name: str) -> set[str]:
    """The fingerprints under which a stage lies in a shared root.

    Raises:
        ConfigError: there is none of that name.
    """
    marks = {path.split("/")[0] for path in (root / f"{SHARED}/{name}").all_names(STARTED) if path.count("/") == 1}
    if not marks:
        found = sorted({path.rsplit("/", 2)[0] for path in (root / SHARED).all_names(STARTED)})
        there = f"name one of {', '.join(found)}" if found else "none has been run yet"
        raise ConfigError(f"--rerun {name}: there is no such stage under {root.path}; {there}")
    return marks


def thrown(root: Folder, name: str) -> None:
    """Throw a stage away, for all trials; what stands on it is computed anew by itself.

    Raises:
        ConfigError: there is none of that name.
    """
    marks = marks_of(root, name)
    trials = root / "trials"
    for file in trials.all_names(TRIAL):  # first: what has no result is looked at again
        trials.remove(file)
    for mark in marks:
        Run.discard(root / f"{SHARED}/{name}/{mark}")
