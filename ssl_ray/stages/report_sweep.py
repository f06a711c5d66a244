"""What a sweep found: a table of means and deviations, curves with error bars, and a plain answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssl_ray.artifacts import Report
from ssl_ray.config import Config
from ssl_ray.errors import ConfigError
from ssl_ray.grids import VARIANT, shown
from ssl_ray.report import figures, html
from ssl_ray.scale import Scale
from ssl_ray.stage import SHARED, stage
from ssl_ray.stages.evaluate import HEADLINE
from ssl_ray.storage import Folder
from ssl_ray.worth import Spread, Worth, in_words, spread, worth


class SweepReportConfig(Config):
    """What is shown, and how it is judged. `digest` stands for the results, which lie beside the report's folder."""

    title: str = "Sweep"
    results: str  # folder with results.parquet and trials.json
    digest: str
    sweep: dict[str, Any]
    against: str | None = None  # axis of the curves; `labels` stands for the number of labels
    baseline: str | None = None  # a model's role, or a variant
    metric: str | None = None
    stages: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies defaults)


@dataclass(frozen=True)
class Setting:
    """One point of the sweep and one model of its trials."""

    point: tuple[tuple[str, str], ...]  # axis -> value as text
    role: str

    def without(self, axis: str | None) -> Setting:
        return Setting(tuple((name, value) for name, value in self.point if name != axis), self.role)

    def words(self) -> str:
        """`init=random, S1: student`"""
        return f"{', '.join(f'{axis}={value}' for axis, value in self.point)}{': ' if self.point else ''}{self.role}"


@dataclass
class Cell:
    """What was measured of a setting."""

    test: dict[int, float]  # seed -> metric
    val: dict[int, float]
    labels: float | None
    x: float | None
    seconds: dict[int, float]
    n: int = 0
    judged_by: dict[int, str] = field(default_factory=dict)  # seed -> the stage of its scores

    def same(self, other: Cell) -> bool:
        """Whether the two are the same models: what the settings differ in comes after them."""
        return self.judged_by == other.judged_by and all(self.judged_by.values())


@stage(Report, derived=True)
def report_sweep(config: SweepReportConfig, out: Folder, scale: Scale) -> dict[str, Any]:
    """`report.html`, and the table, the answer and the scores for the terminal."""
    source = Folder(config.results)
    rows = source.read_table("results.parquet").to_pylist()
    trials = source.read_json("trials.json")
    metric = config.metric or next((key for key, _ in HEADLINE.values() if any(row["metric"] == key for row in rows)), "top1")
    words = dict(HEADLINE.values()).get(metric, metric)
    if rows and not any(row["metric"] == metric for row in rows):
        known = ", ".join(sorted({row["metric"] for row in rows}))
        raise ConfigError(
            f"no model was judged by {metric!r}; the scores have {known}: run the same command with another --metric"
        )
    against = config.against
    cells = cells_of(rows, metric, against)
    gains = gains_of(cells, config)
    table = table_of(cells, gains)
    answer = answer_of(cells, gains, config, words)
    lines = lines_of(cells, against)
    name = "labels (log)" if against == "labels" else str(against)
    failed = [trial for trial in trials if trial["error"]]
    stopped = sum(bool(trial["stopped"]) for trial in trials)
    page = html.render(
        "sweep.html",
        {
            "title": config.title,
            "verdict": answer[0],
            "more": answer[1:],
            "images": describe(trials, failed, stopped, config.stages),
            "metric": words,
            "table": table,
            "has_val": any(row["val"] for row in table),
            "has_gain": any(row["gain"] for row in table),
            "against": figures.curves(lines, name, f"{words} on test (%)", log=against == "labels") if lines else "",
            "bars": "" if lines or not cells else bars_of(table, f"{words} on test"),
            "cost": "" if not cells else figures.curves(
                costs_of(cells, against), "seconds of one model, with all that it stands on", f"{words} on test (%)",
                log=True, joined=False,
            ),
            "failed": failed,
            "has_labels": any(row["labels"] for row in table),
            "stages_title": "Trials",
            "stages_noun": "trial",
            "stages": [{"name": trial["name"], "summary": summary_of(trial), "seconds": f"{trial['seconds']:.1f}"}
                       for trial in trials],
            "configuration": html.configuration(config.sweep),
            "versions": f"results: {source.file('results.parquet')}",
        },
    )  # fmt: skip
    out.write_bytes("report.html", page.encode())
    return {
        "summary": answer[0],
        "answer": answer,
        "metric": words,
        "table": table,
        "failed": [{"name": trial["name"], "error": trial["error"]} for trial in failed],
        "use": chosen(trials, metric),
        "stopped": stopped,
        "scores": [
            {"model": f"{row['trial']}: {row['model']}"} | {key: row[key] for key in ("seed", "split", "metric", "value", "n")}
            for row in rows
        ],
    }


def cells_of(rows: list[dict[str, Any]], metric: str, against: str | None) -> dict[Setting, Cell]:
    """Scores by setting, in the order of the trials."""
    cells: dict[Setting, Cell] = {}
    counted: dict[tuple[Setting, str, int], list[float]] = {}
    for row in rows:
        if row["metric"] != metric or row["stopped"]:
            continue
        point = json.loads(row["point"])
        setting = Setting(tuple((axis, shown(value)) for axis, value in point.items()), row["role"])
        x = row["labels"] if against == "labels" else point.get(against) if against else None
        x = float(x) if isinstance(x, int | float) and not isinstance(x, bool) else None
        cell = cells.setdefault(setting, Cell({}, {}, row["labels"], x, {}))
        if row["split"] in ("test", "val"):
            # A protocol with seeds of its own counts as their mean.
            counted.setdefault((setting, row["split"], row["seed"]), []).append(row["value"])
            into = cell.test if row["split"] == "test" else cell.val
            into[row["seed"]] = float(np.mean(counted[setting, row["split"], row["seed"]]))
        if row["split"] == "test":
            cell.seconds[row["seed"]], cell.n = row["seconds"], row["n"]
            cell.judged_by[row["seed"]] = row["judged_by"]
    return {setting: cell for setting, cell in cells.items() if cell.test}


def baseline_of(setting: Setting, cells: Mapping[Setting, Cell], baseline: str | None) -> Setting | None:
    """What a setting is measured against: another model of the same trial, or the same model in another variant."""
    if baseline is None:
        return None
    point = dict(setting.point)
    if any(dict(other.point).get(VARIANT) == baseline for other in cells):
        found = Setting(tuple((point | {VARIANT: baseline}).items()), setting.role) if VARIANT in point else None
    else:
        found = Setting(setting.point, baseline)
        if found not in cells and setting.role.endswith("-student"):  # of several arms
            found = Setting(setting.point, setting.role.removesuffix("-student"))
    return found if found in cells and found != setting else None


def gains_of(cells: Mapping[Setting, Cell], config: SweepReportConfig) -> dict[Setting, Spread]:
    """Gains over the baseline, by seed."""
    gains = {}
    for setting, cell in cells.items():
        other = baseline_of(setting, cells, config.baseline)
        if other is not None and not cell.same(cells[other]):
            both = sorted(set(cell.test) & set(cells[other].test))
            if both:
                gains[setting] = spread([cell.test[seed] - cells[other].test[seed] for seed in both])
    return gains


def table_of(cells: Mapping[Setting, Cell], gains: Mapping[Setting, Spread]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: dict[Setting, list[Setting]] = {}  # a model that several settings share is shown once
    for setting, cell in cells.items():
        known = next((one for one in first if one.role == setting.role and cells[one].same(cell)), setting)
        first.setdefault(known, []).append(setting)
    for setting, shared in first.items():
        cell = cells[setting]
        found, gain = spread(list(cell.test.values())), gains.get(setting)
        val = spread(list(cell.val.values())).mean if cell.val else None
        rows.append(
            {
                "setting": setting.words() if len(shared) == 1 else f"{setting.role} (the same in {len(shared)} settings)",
                "labels": f"{cell.labels:,.0f}" if cell.labels is not None else "",
                "mean": found.mean,
                "std": None if math.isnan(found.std) else found.std,
                "shown": f"{100 * found.mean:.2f}" + ("" if math.isnan(found.std) else f" ± {100 * found.std:.2f}"),
                "gain": "" if gain is None else points(gain),
                "val": "" if val is None else f"{100 * val:.2f}",
                "val_value": val,
                "seeds": found.n,
                "seconds": f"{spread(list(cell.seconds.values())).mean:,.0f}",
                "best": False,
            }
        )
    judged = [row for row in rows if row["val_value"] is not None]
    if judged:  # test images choose nothing
        max(judged, key=lambda row: float(row["val_value"]))["best"] = True
    return rows


def bars_of(table: list[dict[str, Any]], words: str) -> str:
    names, means, spreads = ([row[key] for row in table] for key in ("setting", "mean", "std"))
    return figures.bars(names, means, spreads, words)


def points(gain: Spread) -> str:
    text = f"{100 * gain.mean:+.2f}"
    return text if math.isnan(gain.low) else f"{text} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def worths_of(cells: Mapping[Setting, Cell], config: SweepReportConfig) -> list[tuple[Setting, Worth]]:
    """What settings are worth in labels of the baseline with the same settings."""
    curves: dict[Setting, dict[float, dict[int, float]]] = {}
    for setting, cell in cells.items():
        if cell.x is not None:
            curves.setdefault(_line(setting, config.against), {})[cell.x] = cell.test
    found = []
    for line, curve in curves.items():
        other = Setting(line.point, config.baseline or "")
        if line.role != config.baseline and other in curves:
            found += [(line, item) for item in worth(curves[other], curve)]
    return found


def answer_of(
    cells: Mapping[Setting, Cell], gains: Mapping[Setting, Spread], config: SweepReportConfig, words: str
) -> list[str]:
    """Sentences, the most telling first."""
    if not cells:
        return ["No trial came to a score."]
    if config.against == "labels" and (found := worths_of(cells, config)):
        last = list(dict.fromkeys(line.role for line, _ in found))[-1]
        # The last model of a trial is what the user gets; then by labels. Nothing is put first because it turned out well.
        worths = sorted(found, key=lambda pair: (pair[0].role != last, pair[1].labels))
        sentences = [in_words(item, line.words(), f"{config.baseline} alone") for line, item in worths]
        clear = sum(item.clear for _, item in found)
        if len(found) > 1 and found[0][1].gain.n > 1:
            sentences.append(
                f"{clear} of {len(found)} such comparisons are clear by themselves (95 %; one in twenty is by chance)."
            )
        return sentences
    sentences = compared(cells, gains, config, words)
    if any(cell.val for cell in cells.values()):
        judged = {setting: spread(list(cell.val.values())).mean for setting, cell in cells.items() if cell.val}
        best = max(judged, key=lambda setting: judged[setting])
        reached = spread(list(cells[best].test.values()))
        seeds = f"{reached.n} seeds" if reached.n > 1 else "one seed"
        sentences.insert(0, f"Validation images choose {best.words()}: {100 * reached.mean:.2f} % {words} on test ({seeds}).")
    elif not sentences:
        sentences = [
            "Without validation images nothing chooses among the settings (--set images.val_images=N); the table has all."
        ]
    return sentences


def compared(
    cells: Mapping[Setting, Cell], gains: Mapping[Setting, Spread], config: SweepReportConfig, words: str
) -> list[str]:
    """Every gain as a sentence, in the order of the trials."""
    sentences = []
    for setting, gain in gains.items():
        other = baseline_of(setting, cells, config.baseline)
        assert other is not None
        clear = gain.n == 1 or gain.low > 0 or gain.high < 0
        seeds = f"{gain.n} seeds" if gain.n > 1 else "one seed: no interval"
        told = "" if clear else " cannot be told apart,"
        sentences.append(f"{setting.words()} against {other.words()}:{told} {points(gain)} points {words} ({seeds}).")
    return sentences


def _line(setting: Setting, against: str | None) -> Setting:
    """The setting without the axis that is drawn over; both words for labels are one axis."""
    if against == "labels":
        return setting.without("labels").without("label_fraction")
    return setting.without(against)


def lines_of(cells: Mapping[Setting, Cell], against: str | None) -> dict[str, list[tuple[float, float, float]]]:
    """Curves: x, mean, half of the error bar (one standard deviation)."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for setting, cell in cells.items():
        if cell.x is not None:
            found = spread(list(cell.test.values()))
            point = (cell.x, found.mean, 0.0 if math.isnan(found.std) else found.std)
            lines.setdefault(_line(setting, against).words(), []).append(point)
    return {name: sorted(points) for name, points in lines.items()}


def costs_of(cells: Mapping[Setting, Cell], against: str | None) -> dict[str, list[tuple[float, float, float]]]:
    """The same against what a model costs alone."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for setting, cell in cells.items():
        found, cost = spread(list(cell.test.values())), spread(list(cell.seconds.values())).mean
        error = 0.0 if math.isnan(found.std) else found.std
        name = _line(setting, against).words()
        lines.setdefault(name, []).append((max(cost, 1e-3), found.mean, error))
    return lines


def describe(trials: list[dict[str, Any]], failed: list[Any], stopped: int, stages: dict[str, Any]) -> str:
    text = f"{len(trials)} trials"
    text += f", {len(failed)} of them failed" if failed else ""
    text += f", {stopped} stopped early" if stopped else ""
    if stages:
        text += (
            f"; {stages['asked']} stages asked for, {stages['different']} of them different; {stages['work_s']:,.0f} s of "
            f"work, {stages['apart_s']:,.0f} s if every trial had done its own"
        )
    return text


def summary_of(trial: dict[str, Any]) -> str:
    if trial["error"]:
        return f"failed: {trial['error']}"
    return ("stopped early; " if trial["stopped"] else "") + trial["summary"]


def chosen(trials: list[dict[str, Any]], metric: str) -> dict[str, str] | None:
    """A model to show the use of: the last one of the trial that is best on validation images, where there are any. Test images
    choose nothing."""
    whole = [trial for trial in trials if trial.get("checkpoints") and not trial["error"] and not trial["stopped"]]
    if not whole:
        return None

    def judged(trial: dict[str, Any]) -> float:
        values = [row["value"] for row in trial["scores"] if (row["split"], row["metric"]) == ("val", metric)]
        return values[-1] if values else -math.inf

    best = max(whole, key=judged)
    name = best["checkpoints"][-1]
    why = "for example" if judged(best) == -math.inf else "that of the best trial on validation images"
    return {"trial": best["name"], "why": why, "path": f"{SHARED}/{name}/{best['stages'][name]['fingerprint']}"}
