"""Tables of docs/self_training.md: the cells of *Rethinking Pre-training and Self-training*, in miniature, beside the paper's.

Every gain is paired by seed. `paper` is what the paper's own table has in that place (read off tables 2, 3, 4 and 7): another
data set, other nets, no intervals; what can be compared is the sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.markdown import NOT_YET, conditions, spread, table
from benchmarks.record import interval, load

SCENES = 6000
"""Of `sample:scenes`, for training."""

METRIC = {"detection": ("map", "AP"), "segmentation": ("miou", "mIoU")}

KINDS = {"miniature": "boxes", "segmentation": "masks"}
"""Recipes by what they learn."""

BY_INIT = {"S1": 0.3, "S2": -0.7, "S3": -0.8, "S4": -1.0}
"""Table 2: what ImageNet weights add to random ones."""

BY_SELF_TRAINING = {"S1": 1.7, "S2": 1.5, "S3": 1.5, "S4": 1.3}
"""Table 2: what self-training adds to random weights."""

LABELS = {
    ("random", 0.2): (0.0, 3.4), ("random", 0.5): (0.0, 1.8), ("random", 1.0): (0.0, 1.3),
    ("pretrained", 0.2): (2.6, 2.7), ("pretrained", 0.5): (-0.8, 1.7), ("pretrained", 1.0): (-1.0, 1.3),
    ("pretrained++", 0.2): (5.2, 1.3), ("pretrained++", 0.5): (0.3, 1.6), ("pretrained++", 1.0): (-0.5, 0.8),
}  # fmt: skip
"""Table 3: what an init adds to random weights, and what self-training adds to the init."""

STARTS = {"pretrained": -0.7, "self-supervised": -0.7, "self-training": 0.8}
"""Table 4: against random weights."""

TOGETHER = {
    ("random", False, True): 3.4, ("random", True, False): 2.9, ("random", True, True): 4.4,
    ("pretrained", False, True): 2.7, ("pretrained", True, False): 0.7, ("pretrained", True, True): 3.3,
}  # fmt: skip
"""Table 7, by init, joint training, self-training: against the init alone."""


@dataclass(frozen=True)
class Cell:
    """One arm: its settings, and its metric on test by seed, percent."""

    arm: dict[str, Any]
    values: dict[int, float]

    def over(self, other: Cell) -> list[float]:
        """The gain, mean and interval, over the seeds that both have."""
        both = [seed for seed in self.values if seed in other.values]
        return list(interval([self.values[seed] - other.values[seed] for seed in both]))


class Cells:
    """The arms of one record, found by their settings."""

    def __init__(self, record: dict[str, Any], metric: str):
        self.record = record
        self.cells = [
            Cell(arm, values)
            for name, arm in record["settings"]["arms"].items()
            if (values := {run["seed"]: 100 * run["arms"][name][metric] for run in record["runs"] if name in run["arms"]})
        ]

    def find(self, **wanted: Any) -> Cell | None:
        settings = {"joint": False, "self_training": False, **wanted}
        return next(
            (cell for cell in self.cells if all(cell.arm.get(key, False) == value for key, value in settings.items())), None
        )

    def note(self, words: str) -> str:
        counts = sorted({len(cell.values) for cell in self.cells})
        seeds, least = " or ".join(map(str, counts)), self.record["settings"]["selection"]["min_confidence"]
        return (
            f"{words} on test, percent; mean and 95 % t interval over {seeds} seeds, gains paired by seed, pseudo-labels over "
            f"{least:g}. {conditions(self.record)}."
        )


def against(cell: Cell | None, base: Cell | None, paper: float | None = None) -> str:
    """A gain and what to make of it; the paper's beside it."""
    if cell is None or base is None:
        return ""
    mean, low, high = cell.over(base)
    said = spread([mean, low, high], sign=True)
    if paper is None:
        return said
    sign = "same sign" if (mean > 0) == (paper > 0) else "other sign"
    verdict = sign if low > 0 or high < 0 else "open"  # of one seed, there is no interval
    return f"{said}; paper {paper:+.1f}: {verdict}"


def value(cell: Cell | None) -> str:
    return "" if cell is None else spread(list(interval(list(cell.values.values()))))


def made(name: str, prefix: str = "self_training") -> tuple[Cells, str] | None:
    """The cells of a recipe, and what they are measured in."""
    record = load(f"{prefix}-{name}")
    if record is None:
        return None
    metric, words = METRIC[record["settings"]["images"]["task"]]
    return Cells(record, metric), words


def augmentation(kind: str) -> str:
    """Table 2."""
    found = made(f"{kind}-table2")
    if found is None:
        return NOT_YET
    cells, words = found
    masks = kind == "segmentation"  # of which the paper has no such table
    rows = []
    for strength in BY_INIT:
        base = cells.find(init="random", augment=strength)
        pretrained = cells.find(init="pretrained", augment=strength)
        student = cells.find(init="random", augment=strength, self_training=True)
        by_init = against(pretrained, base, None if masks else BY_INIT[strength])
        if base is None:
            continue
        rows.append([strength, value(base), by_init, against(student, base, None if masks else BY_SELF_TRAINING[strength])])
    header = f"augmentation | random, {words} | by pre-training | by self-training"
    return table(header, rows, " ".join(worth(cells.record)), cells.note(words))


def released_loss() -> str:
    """Two cells of table 2 with the loss that the miniatures were tuned with, and with the released one."""
    rows, notes = [], []
    for name, loss in (("miniature-table2", "tuned"), ("miniature-released-loss", "released")):
        found = made(name)
        if found is None:
            return NOT_YET
        cells, words = found
        base, student = (cells.find(init="random", augment="S1", self_training=learned) for learned in (False, True))
        settings = cells.record["settings"]["teacher"]["head"]["loss"]
        rows.append([loss, f"{settings['box_weight']:g}", settings["forced"], value(base), against(student, base)])
        notes.append(f"{loss}: {conditions(cells.record)}")
    header = f"loss | box_weight | forced | random, S1, {words} | by self-training"
    text = f"{words} on test, percent; mean and 95 % t interval over 3 seeds, gains paired by seed."
    return table(header, rows, f"{text} {'; '.join(notes)}.")


def labels(kind: str) -> str:
    """Table 3."""
    found = made(f"{kind}-table3")
    if found is None:
        return NOT_YET
    cells, words = found
    rows = []
    for share in (0.2, 0.5, 1.0):
        random = cells.find(init="random", share=share)
        for init in ("random", "pretrained", "pretrained++"):
            alone = cells.find(init=init, share=share)
            if alone is None:
                continue
            student = cells.find(init=init, share=share, self_training=True)
            by_init, by_student = LABELS[init, share] if kind == "miniature" else (None, None)
            gain = "" if init == "random" else against(alone, random, by_init)
            rows.append([f"{share:.0%}", init, value(alone), gain, against(student, alone, by_student)])
    header = f"labels | init | {words} | by the init | by self-training"
    return table(header, rows, " ".join(worth(cells.record)), cells.note(words))


LARGER = {"larger": "miniature", "larger-segmentation": "segmentation"}
"""Recipes of larger scenes and longer trainings, and whose record has what was found with shorter ones."""


def larger() -> str:
    """The cells of few labels again, at more pixels and in more steps."""
    rows, notes = [], []
    for name, kind in LARGER.items():
        found = made(name)
        if found is None:
            continue
        cells, words = found
        random = cells.find(init="random", share=0.2)
        for init in ("random", "pretrained"):
            alone = cells.find(init=init, share=0.2)
            if alone is None:
                continue
            student = cells.find(init=init, share=0.2, self_training=True)
            by_init, by_student = LABELS[init, 0.2] if kind == "miniature" else (None, None)
            gain = "" if init == "random" else against(alone, random, by_init)
            rows.append([words, init, str(len(alone.values)), value(alone), gain, against(student, alone, by_student)])
        notes += [*worth(cells.record), how_chosen(kind, cells, words), cells.note(words)]
    return table("metric | init | seeds | teacher | by the init | by self-training", rows, *notes)


def how_chosen(kind: str, cells: Cells, words: str) -> str:
    """What the gain on 20 % is without the seed by which settings were chosen, and what it was before they were."""
    student, teacher = cells.find(init="random", share=0.2, self_training=True), cells.find(init="random", share=0.2)
    short = made(f"{kind}-table3", "self_training_short")
    if student is None or teacher is None or short is None:
        return ""
    before, _ = short
    first, base = before.find(init="random", share=0.2, self_training=True), before.find(init="random", share=0.2)
    assert first is not None
    assert base is not None
    others = Cell(student.arm, {seed: value for seed, value in student.values.items() if seed})
    settings = before.record["settings"]
    steps = f"{settings['teacher']['schedule']['length']:,.0f} steps"
    return (
        f"On 20 % from random weights without seed 0, by which settings were chosen: {spread(others.over(teacher), sign=True)} "
        f"{words}, {len(others.values)} seeds. Before they were, with {steps} and "
        f"pseudo-labels over {settings['selection']['min_confidence']:g}: {spread(first.over(base), sign=True)}, "
        f"{len(first.values)} seeds."
    )


def starts(kind: str) -> str:
    """Table 4."""
    found = made(f"{kind}-table4")
    if found is None:
        return NOT_YET
    cells, words = found
    base = cells.find(init="random")
    rows = [["random weights", value(base), ""]]
    for name, paper in STARTS.items():
        student = name == "self-training"
        cell = cells.find(init="random" if student else name, self_training=student)
        rows.append([name, value(cell), against(cell, base, paper if kind == "miniature" else None)])
    return table(f"start | {words} | against random weights", rows, cells.note(words))


def together(kind: str) -> str:
    """Table 7."""
    found = made(f"{kind}-table7")
    if found is None:
        return NOT_YET
    cells, words = found
    rows = []
    for init in ("random", "pretrained"):
        base = cells.find(init=init)
        rows.append([init, "", value(base), ""])
        for joint, student in ((False, True), (True, False), (True, True)):
            cell = cells.find(init=init, joint=joint, self_training=student)
            name = " and ".join(["joint training"] * joint + ["self-training"] * student)
            paper = TOGETHER[init, joint, student] if kind == "miniature" else None
            rows.append([init, name, value(cell), against(cell, base, paper)])
    return table(f"init | with | {words} | against the init alone", rows, cells.note(words))


def worth(record: dict[str, Any]) -> list[str]:
    """Precision and recall of the pseudo-labels that the selection keeps, against hidden labels, mean over seeds."""
    least = record["settings"]["selection"]["min_confidence"]
    noun = {"detection": "boxes", "segmentation": "pixels"}[record["settings"]["images"]["task"]]
    found = []
    for arm in dict.fromkeys(curve["arm"] for run in record["runs"] for curve in run["precision"]):
        curves = [curve["rows"] for run in record["runs"] for curve in run["precision"] if curve["arm"] == arm]
        rows = [row for curve in curves for row in curve if abs(row["threshold"] - least) < 1e-6]
        precision, recall = (sum(row[key] for row in rows) / len(rows) for key in ("precision", "recall"))
        found.append(f"`{arm}`: pseudo-{noun} with a precision of {precision:.1%} and a recall of {recall:.1%}.")
    return found


def few_labels() -> list[list[str]]:
    """Rows for the README: teacher and student on a fifth of the labels, from random weights."""
    rows = []
    for name in ("miniature-table3", "segmentation-table3"):
        found = made(name)
        if found is None:
            continue
        cells, words = found
        teacher = cells.find(init="random", share=0.2)
        student = cells.find(init="random", share=0.2, self_training=True)
        if teacher is None or student is None:
            continue
        settings = cells.record["settings"]
        count, noun = settings["images"]["labels"], {"AP": "boxes", "mIoU": "masks"}[words]
        means = [f"{sum(cell.values.values()) / len(cell.values):.2f}" for cell in (teacher, student)]
        rows.append(
            [
                f"scenes of clothes, {noun} ({words}): {count // 5} labels, {SCENES - count:,} unlabeled, "
                f"{settings['teacher']['schedule']['length']:,.0f} steps",
                *means,
                spread(student.over(teacher), sign=True),
                str(len(student.values)),
            ]
        )
    return sorted(rows)


def throughput() -> str:
    record = load("scene_throughput")
    if record is None:
        return NOT_YET
    rates = record["images_per_s"]
    pairs = {
        "labelling / bare loop": ("labelling, ours", "labelling, bare loop"),
        "training through Ray / bare loop": ("training, through Ray", "training, bare loop"),
        "training without Ray / bare loop": ("training, without Ray", "training, bare loop"),
    }
    rows = [
        [name, f"{record['ratios'][name]:.3f}", *(" ".join(f"{rate:.0f}" for rate in rates[side]) for side in sides)]
        for name, sides in pairs.items()
    ]
    steady = record["ratios"].get("labelling / bare loop, steady")
    without = "" if steady is None else f"; without it the ratio is {steady:.2f}"
    return table(
        "what | ratio | ours, images/s | bare loop, images/s",
        rows,
        f"RetinaNet around EfficientNet-Lite0 (recipe `photos`). Labelling counts the start of both sides{without}. Median "
        "over turns; "
        f"{record['pixels']} pixels, {record['images']:,} images labelled, batches of {record['batch']} trained. "
        f"{conditions(record)}.",
    )


SELF_TRAINING: dict[str, Callable[[], str]] = {
    f"self_training_{name}_{learned}": partial(make, kind)
    for kind, learned in KINDS.items()
    for name, make in (("augmentation", augmentation), ("labels", labels), ("starts", starts), ("together", together))
} | {"self_training_larger": larger, "self_training_released_loss": released_loss}
"""Names of the tables, and what makes them."""
