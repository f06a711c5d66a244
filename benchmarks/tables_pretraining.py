"""Tables of docs/simclrv2.md and docs/hpt.md."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.markdown import NOT_YET, conditions, spread, table
from benchmarks.record import interval, load


def simclrv2_curve() -> str:
    record = load("simclrv2_gain")
    if record is None:
        return NOT_YET
    columns = {"supervised": "supervised", "finetuned": "fine-tuned", "self-distilled": "self-distilled"}
    rows = []
    for count in record["counts"]:
        cells = [spread(record["accuracy"][f"{count}/{name}"]) for name in columns]
        rows.append([f"{count:,}", *cells, paired(record, f"{count}/finetuned", f"{count}/supervised"),
                     paired(record, f"{count}/self-distilled", f"{count}/finetuned")])  # fmt: skip
    probes = ", ".join(
        f"{name.removesuffix(' probe')} {values[0]:.2f} %"
        for name, values in record["accuracy"].items()
        if name.endswith(" probe")
    )
    return table(
        f"labels | {' | '.join(columns.values())} | fine-tuned over supervised, points | distilled over fine-tuned, points",
        rows,
        f"Percent, mean and 95 % t interval over {len(record['runs'])} seeds (labels, pretraining and training drawn anew); "
        f"differences are paired by seed. The frozen encoder on {max(record['counts']):,} labels: {probes}. "
        f"{conditions(record)}.",
    )


def simclrv2_at() -> str:
    record = load("simclrv2_gain")
    if record is None:
        return NOT_YET
    at = record["at"]
    words = {
        "finetuned": ("fine-tuned from the head's first layer", "supervised"),
        "from-layer-0": ("fine-tuned from the head's input (layer 0)", "finetuned"),
        "self-distilled": ("self-distilled", "finetuned"),
        "narrow-supervised": ("half as wide, supervised", "supervised"),
        "narrow-finetuned": ("half as wide, pretrained and fine-tuned", "finetuned"),
        "narrow-self-distilled": ("half as wide, self-distilled", "narrow-finetuned"),
        "narrow": ("half as wide, distilled from the self-distilled wider net", "self-distilled"),
    }
    rows = [
        [
            text,
            spread(record["accuracy"][f"{at}/{name}"]),
            NAMES_AT.get(other, other),
            paired(record, f"{at}/{name}", f"{at}/{other}"),
        ]
        for name, (text, other) in words.items()
    ]
    note = f"{at} labels, percent, mean and 95 % t interval over {len(record['runs'])} seeds; differences are paired."
    return table("model | top-1 on test | against | difference, points", rows, f"{note} {conditions(record)}.")


def simclrv2_longer() -> str:
    record = load("simclrv2_gain")
    if record is None:
        return NOT_YET
    at, steps = record["at"], record["settings"]["self_distill"]["schedule"]["length"]
    lines = [
        (f"{count:,} labels, itself", f"{count}/finetuned", f"{count}/self-distilled", f"{count}/longer-distilled")
        for count in (1000, 4000)
    ]
    lines.append((f"{at} labels, a net half as wide", f"{at}/self-distilled", f"{at}/narrow", f"{at}/narrow-longer"))
    rows = [
        [words, spread(record["accuracy"][teacher]), paired(record, short, teacher), paired(record, long, teacher)]
        for words, teacher, short, long in lines
    ]
    return table(
        f"distilled into | teacher | {steps:,.0f} steps, against the teacher | {4 * steps:,.0f} steps, against the teacher",
        rows,
        f"Percent and points, mean and 95 % t interval over {len(record['runs'])} seeds; differences are paired. "
        f"{conditions(record)}.",
    )


def hpt_strategies() -> str:
    record = load("hpt_gain")
    if record is None:
        return NOT_YET
    names = {"base": "base", "target": "target", "hpt": "HPT", "hpt-bn": "HPT-BN"}
    rows = []
    for target in dict.fromkeys(row["target"] for row in record["runs"][0]["rows"]):
        for strategy, words in names.items():
            best = [at_its_best(run, target, strategy) for run in record["runs"]]
            tuned = [cell["top1"] for run in record["runs"] for cell in run["grid"]
                     if (cell["target"], cell["strategy"]) == (target, strategy)]  # fmt: skip
            over = [
                row["linear"] - at_its_best(run, target, "target")["linear"]
                for row, run in zip(best, record["runs"], strict=True)
            ]
            rows.append(
                [
                    target,
                    words,
                    spread(list(interval([100 * row["linear"] for row in best]))),
                    "–" if strategy == "target" else spread(list(interval([100 * value for value in over])), sign=True),
                    spread(list(interval([100 * value for value in tuned]))),
                    ", ".join(f"{row['step']:,}" for row in best),
                ]
            )
    labels = record["settings"]["finetune"]["labels"][0]
    return table(
        f"target | strategy | linear probe | against target, points | fine-tuned on {labels:,} labels | best step by seed",
        rows,
        f"Top-1 on test, percent; mean and 95 % t interval over {len(record['runs'])} seeds, differences paired. Steps, "
        f"rates and schedules were chosen on validation images. {conditions(record)}.",
    )


def at_its_best(run: dict[str, Any], target: str, strategy: str) -> dict[str, Any]:
    """The step of a strategy that validation likes best."""
    own = [row for row in run["rows"] if (row["target"], row["strategy"], row["variant"]) == (target, strategy, "")]
    return max(own, key=lambda row: row["val"])


def hpt_steps() -> str:
    record = load("hpt_gain")
    if record is None:
        return NOT_YET
    rows = []
    for target in dict.fromkeys(found["target"] for found in record["runs"][0]["speedups"]):
        found = [line for run in record["runs"] for line in run["speedups"] if line["target"] == target]
        rows.append(
            [
                target,
                ", ".join(f"{line['slow_step']:,}" for line in found),
                spread(list(interval([100 * line["slow_linear"] for line in found]))),
                ", ".join(f"{line['quick_step']:,}" if line["quick_step"] else "not reached" for line in found),
                ", ".join(f"{line['times']:.3g}" if line["times"] else "–" for line in found),
            ]
        )
    return table(
        "target | target pretraining at its best: after steps, by seed | its linear probe | HPT is as good after steps | "
        "times fewer",
        rows,
        "As good: on validation images, by linear probe, at the first of the steps that were looked at.",
    )


def hpt_curve() -> str:
    """Linear probes by step."""
    record = load("hpt_gain")
    if record is None:
        return NOT_YET
    parts = []
    for target in dict.fromkeys(row["target"] for row in record["runs"][0]["rows"]):
        courses: dict[str, dict[int, list[float]]] = {}
        for run in record["runs"]:
            for row in run["rows"]:
                if row["target"] == target and row["strategy"] in ("target", "hpt"):
                    courses.setdefault(row["strategy"], {}).setdefault(row["step"], []).append(100 * row["linear"])
        steps = sorted({step for course in courses.values() for step in course})
        rows = [
            [name, *(f"{statistics.fmean(course[step]):.2f}" if step in course else "" for step in steps)]
            for name, course in courses.items()
        ]
        parts.append(table(f"{target}, steps | " + " | ".join(f"{step:,}" for step in steps), rows))
    return "\n".join(parts)


def hpt_robustness() -> str:
    record = load("hpt_robustness")
    if record is None:
        return NOT_YET
    changes: dict[tuple[str, str], list[float]] = {}
    for run in record["runs"]:
        plain = {row["strategy"]: row["linear"] for row in run["rows"] if row["last"] and not row["variant"]}
        for row in run["rows"]:
            if row["variant"]:
                changes.setdefault((row["variant"], row["strategy"]), []).append(100 * (row["linear"] - plain[row["strategy"]]))
    rows = []
    for variant in dict.fromkeys(name for name, _ in changes):
        cells = [changes.get((variant, strategy)) for strategy in ("hpt", "target")]
        rows.append([variant, *(spread(list(interval(values)), sign=True) if values else "" for values in cells)])
    seeds = len(record["runs"])
    return table(
        "changed | HPT, points | target, points",
        rows,
        f"Linear probe on test against the same strategy unchanged, {seeds} seed{'s' if seeds > 1 else ''}. "
        f"{conditions(record)}.",
    )


NAMES_AT = {
    "finetuned": "fine-tuned",
    "narrow-finetuned": "half as wide, fine-tuned",
    "self-distilled": "its teacher",
}


def paired(record: dict[str, Any], name: str, other: str) -> str:
    """The difference of two models by seed, with its interval."""
    return spread(list(interval([100 * (run["top1"][name] - run["top1"][other]) for run in record["runs"]])), sign=True)


def throughput(method: str) -> str:
    record = load(f"pretrain_throughput-{method}")
    if record is None:
        return NOT_YET
    rates = [[name, ", ".join(f"{value:,.0f}" for value in values)] for name, values in record["images_per_s"].items()]
    if peer := record.get("peer"):
        rates.append(["lightly-train, its own defaults", f"{peer['images_per_s']:,.0f}"])
    return "\n".join(
        [
            table(f"{'SimCLR' if method == 'simclr' else 'MoCo v2'}, ResNet-18 | images/s, by turn", rates),
            table(
                "ratio | ",
                [[name, f"{value:.3f}"] for name, value in record["ratios"].items()],
                f"{record['pixels']} pixels, batch {record['batch']}; of the bare loop's time {record['views_share']:.0%} are "
                f"views. {conditions(record)}.",
            ),
        ]
    )
