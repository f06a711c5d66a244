"""What a checkpoint is worth by every protocol, in one HTML file."""

from __future__ import annotations

from typing import Any

from ssl_ray.artifacts import Checkpoint, Corpus, Report, Scores
from ssl_ray.report import figures, html
from ssl_ray.scale import Scale
from ssl_ray.stage import stage
from ssl_ray.stages.probe import summarize
from ssl_ray.stages.report import ReportConfig, stage_rows
from ssl_ray.storage import Folder


@stage(Report)
def report_evaluation(
    config: ReportConfig, out: Folder, scale: Scale, *, images: Corpus, model: Checkpoint, probed: Scores, tuned: list[Scores]
) -> dict[str, Any]:
    """`report.html`: mean and standard deviation over seeds of every probe and fine-tuning."""
    scores = probed.rows + [row for part in tuned for row in part.rows]
    metric = "top1" if images.label_sets is None else "auroc"
    table = summarize([row for row in scores if row["split"] == "test" and row["metric"] == metric])
    words = {"top1": "top-1 on test", "auroc": "macro AUROC on test"}[metric]
    best = max(table, key=lambda row: row["mean"])
    page = html.render(
        "evaluation.html",
        {
            "title": config.title,
            "verdict": f"{model.record.name} of {model.path}: {best['shown']} {words} by {best['model']}.",
            "metric": words,
            "images": images.results["summary"],
            "table": table,
            "bars": figures.bars(
                [row["model"] for row in table], [row["mean"] for row in table], [row["sd"] for row in table], words
            ),
            "chosen": probed.results["chosen"],
            "stages": stage_rows([images, probed, *tuned]),
            "configuration": html.configuration(config.recipe),
            "versions": html.versions(probed),
        },
    )
    out.write_bytes("report.html", page.encode())
    return {"summary": f"best: {best['shown']} by {best['model']}", "scores": scores, "table": table, "metric": words}
