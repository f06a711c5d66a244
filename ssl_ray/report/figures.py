"""Figures as SVG text, drawn by matplotlib without a screen. Names of classes and files are data: no math, no markup."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

INK, MUTED, TEACHER, STUDENT, LINE = "#1f2933", "#8593a3", "#8aa4c8", "#2457a6", "#d64545"
SHADES = [STUDENT, LINE, "#2f855a", "#b7791f", "#6b46c1", "#0b7285", MUTED]
STYLE = {
    "font.size": 10,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ssl_ray",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e9ee",
}
MANY = 30
"""From so many classes on, bars give way to sorted lines."""


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in our style, inches. Matplotlib is imported
    by who draws alone: it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height))
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n trials (Wilson 1927)."""
    if not n:
        return 0.0, 1.0
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(names: Sequence[str], values: Sequence[float], counts: Sequence[int]) -> str:
    """Top-1 by model, with the interval that the number of test images allows."""
    with canvas(5.6, 3.1) as (figure, axes):
        bounds = [wilson(value, n) for value, n in zip(values, counts, strict=True)]
        errors = np.array([[v - low, high - v] for v, (low, high) in zip(values, bounds, strict=True)]).T * 100
        errors = errors.clip(min=0)  # at 100 % the upper bound is the value itself, up to rounding
        colors = [TEACHER] + [STUDENT] * (len(names) - 1)
        places = np.arange(len(names))
        axes.plot(places, np.array(values) * 100, color=MUTED, linewidth=1, zorder=1)
        for place, value, color, error in zip(places, values, colors, errors.T, strict=True):
            axes.errorbar(place, value * 100, yerr=error[:, None], fmt="o", color=color, capsize=4, markersize=8)
            axes.annotate(f"{value:.1%}", (place, value * 100), xytext=(9, 4), textcoords="offset points")
        axes.set_xticks(places, names)
        axes.set_xlim(-0.5, len(names) - 0.3)
        axes.set_ylabel("top-1 on test (%)")
        return _svg(figure)


def confidence_histogram(counts: Sequence[int], thresholds: np.ndarray) -> str:
    """All unlabeled images by the teacher's confidence, and the thresholds of the classes."""
    with canvas(5.6, 3.1) as (figure, axes):
        values = np.asarray(counts)
        edges = np.linspace(0, 1, len(values))  # the last bin holds exactly 1.0 and is drawn with the one before
        merged = np.append(values[:-2], values[-2] + values[-1])
        axes.bar(edges[:-1], merged, width=np.diff(edges), align="edge", color=TEACHER)
        used = thresholds[thresholds <= 1]
        if len(used):
            axes.axvspan(used.min(), used.max(), color=LINE, alpha=0.12, linewidth=0)
            axes.axvline(used.min(), color=LINE, linewidth=1.5)
            label = f"threshold {used.min():.2f}" + (f" to {used.max():.2f}" if used.max() > used.min() else "")
            left = used.min() < 0.4  # keep the words inside the axes
            axes.annotate(
                label,
                (used.max() if left else used.min(), 1),
                xycoords=("data", "axes fraction"),
                xytext=(5 if left else -5, -12),
                color=LINE,
                textcoords="offset points",
                ha="left" if left else "right",
            )
        axes.set_yscale("log")
        # matplotlib writes powers of ten as math, which is switched off for the sake of class names
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlim(0, 1)
        axes.set_xlabel("confidence of the teacher")
        axes.set_ylabel("images (log)")
        return _svg(figure)


def class_counts(classes: Sequence[str], before: Sequence[float], after: Sequence[float] | None) -> str:
    """Images a class as the teacher labels them, and, if given, as the student sees them in an epoch."""
    many = len(classes) > MANY
    with canvas(5.6, 3.1 if many or len(classes) <= 12 else 0.26 * len(classes)) as (figure, axes):
        if many:
            order = np.argsort(-np.asarray(before))
            axes.plot(np.asarray(before)[order], color=TEACHER, label="before")
            if after is not None:
                axes.plot(np.asarray(after)[order], color=STUDENT, label="after balancing")
            axes.set_xlabel("classes, most frequent first")
            axes.set_ylabel("images")
        else:
            places = np.arange(len(classes))
            if after is None:
                axes.barh(places, before, height=0.7, color=TEACHER)
            else:
                axes.barh(places - 0.2, before, height=0.4, color=TEACHER, label="before")
                axes.barh(places + 0.2, after, height=0.4, color=STUDENT, label="after balancing")
            axes.set_yticks(places, [name if len(name) <= 24 else name[:23] + "…" for name in classes])
            axes.invert_yaxis()
            axes.set_xlabel("images")
            axes.grid(axis="y", visible=False)
        if after is not None:
            axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return _svg(figure)


def precision(curves: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """Precision of the pseudo-labels that a threshold keeps; thin line: the share that it keeps."""
    with canvas(5.6, 3.1) as (figure, axes):
        shades = [TEACHER, STUDENT, "#0b2a57", "#4f7cc4"]
        for number, (name, rows) in enumerate(curves):
            color = shades[min(number, len(shades) - 1)]
            x = [row["threshold"] for row in rows if row["n"]]
            axes.plot(x, [row["precision"] * 100 for row in rows if row["n"]], color=color, label=name)
            axes.plot(x, [row["share"] * 100 for row in rows if row["n"]], color=color, linewidth=1, linestyle=":")
        axes.set_xlabel("threshold")
        axes.set_ylabel("precision (%), dotted: share kept (%)")
        axes.set_ylim(None, 101)
        axes.legend(frameon=False, loc="lower left")
        return _svg(figure)


def precision_recall(curves: Sequence[tuple[str, Sequence[dict[str, Any]]]], noun: str) -> str:
    """Precision of pseudo-boxes or pixels over a threshold; dotted: recall."""
    with canvas(5.6, 3.4) as (figure, axes):
        for number, (name, rows) in enumerate(curves):
            color = SHADES[number % len(SHADES)]
            kept = [row for row in rows if row["n"]]
            x = [row["threshold"] for row in kept]
            axes.plot(x, [row["precision"] * 100 for row in kept], color=color, label=name)
            axes.plot(x, [row["recall"] * 100 for row in kept], color=color, linewidth=1, linestyle=":")
        axes.set_xlabel("threshold")
        axes.set_ylabel(f"precision of {noun} (%), dotted: recall (%)")
        axes.set_ylim(0, 101)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return _svg(figure)


def by_class(classes: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    """A metric by class, a bar for each of several models; many classes become sorted lines."""
    many = len(classes) > MANY
    with canvas(5.6, 3.1 if many else 0.8 + 0.32 * len(classes)) as (figure, axes):
        places, height = np.arange(len(classes)), 0.8 / max(1, len(lines))
        for number, (name, values) in enumerate(lines.items()):
            color = (TEACHER, STUDENT)[number % 2]
            if many:
                axes.plot(np.sort(np.asarray(values) * 100)[::-1], color=color, label=name)
            else:
                axes.barh(places + (number - 0.5) * height, np.asarray(values) * 100, height=height, color=color, label=name)
        if many:
            axes.set_xlabel("classes, best first")
        else:
            axes.set_yticks(places, [name if len(name) <= 24 else name[:23] + "…" for name in classes])
            axes.invert_yaxis()
            axes.set_xlabel("%")
            axes.grid(axis="y", visible=False)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return _svg(figure)


def bars(names: Sequence[str], values: Sequence[float], spreads: Sequence[float | None], words: str) -> str:
    """Shares as horizontal bars, with one standard deviation where there are several seeds."""
    with canvas(5.6, 0.6 + 0.32 * len(names)) as (figure, axes):
        places = np.arange(len(names))
        errors = np.array([spread or 0.0 for spread in spreads]) * 100
        axes.barh(places, np.array(values) * 100, height=0.65, color=TEACHER, xerr=errors, ecolor=INK, capsize=3)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlabel(f"{words} (%)")
        axes.grid(axis="y", visible=False)
        return _svg(figure)


def course(history: Sequence[dict[str, float]], names: dict[str, str], unit: str = "step") -> list[str]:
    """One small figure for every number of a training's history that is there, against steps (`unit`: their name and key)."""
    drawn = []
    for key, words in names.items():
        points = [(entry[unit], entry[key]) for entry in history if key in entry]
        if len(points) < 2:
            continue
        with canvas(5.6, 2.4) as (figure, axes):
            axes.plot(*zip(*points, strict=True), color=STUDENT, marker="o", markersize=4)
            axes.set_xlabel(unit)
            axes.set_title(words, loc="left", fontsize=10)
            drawn.append(_svg(figure))
    return drawn


def against_steps(courses: dict[str, list[tuple[float, float]]], levels: dict[str, float], words: str) -> str:
    """Shares against steps, a line each; `levels` are drawn across, dashed: they have no course."""
    with canvas(6.2, 3.6) as (figure, axes):
        for number, (name, points) in enumerate(courses.items()):
            x, y = zip(*points, strict=True)
            axes.plot(x, np.array(y) * 100, color=SHADES[number % len(SHADES)], marker="o", markersize=4, label=name)
        for number, (name, level) in enumerate(levels.items(), start=len(courses)):
            axes.axhline(level * 100, color=SHADES[number % len(SHADES)], linestyle="--", linewidth=1.2, label=name)
        if courses:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
            axes.set_xlabel("steps on the target (log)")
        else:
            axes.set_xticks([])
        axes.set_ylabel(words)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
        return _svg(figure)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float, float]]], across: str, upwards: str, *, log: bool, joined: bool = True
) -> str:
    """Shares with error bars, a line each: x, mean, half of the bar; `joined=False` draws points alone."""
    with canvas(6.2, 3.8 + 0.12 * len(lines)) as (figure, axes):
        for number, (name, points) in enumerate(lines.items()):
            x, mean, error = (np.array(column) for column in zip(*points, strict=True))
            axes.errorbar(x, mean * 100, yerr=error * 100 if error.any() else None, color=SHADES[number % len(SHADES)],
                          linestyle=("-", "--", ":")[number // len(SHADES) % 3] if joined else "none", marker="o", markersize=4,
                          capsize=3, linewidth=1.5, label=name)  # fmt: skip
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
            ticks = sorted({point[0] for points in lines.values() for point in points})
            if joined and 2 <= len(ticks) <= 8:
                axes.set_xticks(ticks)
            elif ticks[-1] < 20 * ticks[0]:  # no decade or one: its own ticks have numbers
                axes.xaxis.set_minor_formatter(lambda value, _: f"{value:,g}")
        axes.set_xlabel(across)
        axes.set_ylabel(upwards)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1 if len(lines) > 4 else 2, fontsize=8)
        return _svg(figure)


def by_layer(lines: dict[str, list[tuple[str, float]]]) -> str:
    """Accuracy of linear classifiers by layer, a line an arm."""
    with canvas(6.2, 3.6) as (figure, axes):
        for number, (name, points) in enumerate(lines.items()):
            names, values = zip(*points, strict=True)
            axes.plot(names, np.array(values) * 100, color=SHADES[number % len(SHADES)], marker="o", markersize=4, label=name)
        axes.set_ylabel("top-1 on test (%)")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return _svg(figure)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
