"""The last thing that a job prints: scores, where the report lies, and how to load the model."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_ray.artifacts import PseudoLabels, Report
from ssl_ray.entry import program
from ssl_ray.storage import Folder


def finish(root: Folder, report: Report) -> None:
    """Write `<root>/scores.json` and print the table."""
    root.write_json("scores.json", report.results["scores"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("model", "left"), ("top-1 on test", "right"), ("gain", "right"), ("test images", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in report.results["table"]:
        cells = [row["name"], row["top1"], row["gain"], row["n"]]
        table.add_row(*(Text(str(cell)) for cell in cells), style="bold green" if row["best"] else None)
    console = _show(table, report)
    console.print(Text(f"scores: {root.file('scores.json')}"))
    console.print("\nUse the student:\n")
    model = root.file(report.results["best"])
    console.print(
        Text(f"    from ssl_ray import load_model\n    model = load_model({model!r})\n    print(model.predict('image.png'))")
    )


def finish_evaluation(root: Folder, report: Report) -> None:
    """The last thing that `ssl-ray evaluate` prints: every protocol's mean and standard deviation over seeds."""
    root.write_json("scores.json", report.results["scores"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("protocol", "left"), (report.results["metric"], "right"), ("seeds", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in report.results["table"]:
        table.add_row(*(Text(str(row[key])) for key in ("model", "shown", "seeds")))
    console = _show(table, report)
    console.print(Text(f"scores: {root.file('scores.json')}"))


def finish_hpt(root: Folder, report: Report) -> None:
    """The last thing that `ssl-ray hpt` prints: every strategy on every target, and after how many steps it paid."""
    found = report.results
    root.write_json("scores.json", found["scores"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    counts = list(dict.fromkeys(name for rows in found["tables"].values() for row in rows for name in row["tuned"]))
    for name, justify in (("target", "left"), ("strategy", "left"), ("best step", "right"), ("linear", "right"),
                          ("neighbours", "right"), *((f"tuned, {name}", "right") for name in counts)):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for target, rows in found["tables"].items():
        for row in rows:
            cells = [target, row["strategy"], row["step"], row["linear"], row["knn"]]
            cells += [row["tuned"].get(name, "–") for name in counts]
            table.add_row(*(Text(str(cell)) for cell in cells), style="bold green" if row["best"] else None)
    console = _show(table if found["tables"] else None, report)
    console.print(Text(f"scores: {root.file('scores.json')}\n"))
    for line in found["verdicts"]:
        console.print(Text(line))
    console.print("\nThe encoders, and how to judge one on images with labels:\n")
    for target, path in found["use"].items():
        console.print(Text(f"    {target}: {path}"))
    path = next(iter(found["use"].values()))
    console.print(Text(f"    {program()} evaluate probes --model {path} --labeled SRC --test SRC --root runs/judged"))


def finish_transfer(root: Folder, report: Report) -> None:
    """The last thing that `ssl-ray knowledge-transfer` prints: every arm by protocol, and how to go on with the best."""
    console = _show_arms(root, report, "NMI", "nmi")
    console.print("\nThe net, and how to judge it on images with labels:\n")
    path = root.file(report.results["best"])
    command = f"{program()} evaluate probes --model {path} --labeled SRC --test SRC --root runs/judged"
    console.print(Text(f"    {command}"))


def finish_self_training(root: Folder, report: Report) -> None:
    """The last thing that `ssl-ray rethinking` prints: every arm, what self-training moved, and how to use the best."""
    console = _show_arms(root, report, "by self-training", "gain")
    path = root.file(report.results["best"])
    if report.results.get("chosen_by", "val") is None and len(report.results["table"]) > 1:
        console.print(
            Text(f"\nWithout validation images nothing chooses among the arms (--set images.val_images=N). One of them: {path}")
        )
    console.print("\nUse the model:\n")
    uses = {
        "detection": f"    for name, score, corners in model.find('image.png', over={report.results.get('over', 0.3):g}):\n"
        "        print(name, score, corners)",
        "segmentation": "    print(model.predict('image.png')[0].classes)  # of every pixel: model.classes[number]",
    }
    use = uses.get(report.results["task"], "    print(model.predict('image.png'))")
    console.print(Text(f"    from ssl_ray import load_model\n    model = load_model({path!r})\n{use}"))


def finish_sweep(root: Folder, report: Report) -> None:
    """The last thing that `ssl-ray sweep` prints: every setting's mean and deviation, what failed, and a plain answer."""
    found = report.results
    root.write_json("scores.json", found["scores"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("setting: model")
    gains, val = any(row["gain"] for row in found["table"]), any(row["val"] for row in found["table"])
    labels = [("labels", "labels")] if any(row["labels"] for row in found["table"]) else []
    columns = [("shown", f"{found['metric']} on test, %"), ("seeds", "seeds"), ("seconds", "seconds")]
    columns[1:1] = [*([("gain", "gain, points")] if gains else []), *([("val", "on validation, %")] if val else [])]
    columns = [*labels, *columns]
    for _, name in columns:
        table.add_column(name, justify="right")
    for row in found["table"]:
        cells = [row["setting"], *(row[key] for key, _ in columns)]
        table.add_row(*(Text(str(cell)) for cell in cells), style="bold green" if row["best"] else None)
    console = _show(table if found["table"] else None, report)
    console.print(Text(f"results: {root.file('results/results.parquet')}   scores: {root.file('scores.json')}"))
    for trial in found["failed"]:
        console.print(Text(f"failed: {trial['name']}: {trial['error']}", style="red"))
    console.print()
    for line in found["answer"][:6]:
        console.print(Text(line))
    if len(found["answer"]) > 6:
        console.print(Text(f"({len(found['answer']) - 6} more in the report)"))
    if found["use"] is not None:
        console.print(Text(f"\nUse a model, {found['use']['why']} ({found['use']['trial']}):\n"))
        console.print(Text(f"    from ssl_ray import load_model\n    model = load_model({root.file(found['use']['path'])!r})"))


def _show_arms(root: Folder, report: Report, last: str, key: str) -> Console:
    """A table of all arms, the best one marked, with a last column of one's own; and what it comes to."""
    found = report.results
    root.write_json("scores.json", found["scores"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for name in (*found["columns"], last):
        table.add_column(name, justify="right")
    for row in found["table"]:
        cells = [row["arm"], *row["cells"], row[key]]
        table.add_row(*(Text(str(cell)) for cell in cells), style="bold green" if row["best"] else None)
    console = _show(table, report)
    console.print(Text(f"scores: {root.file('scores.json')}\n"))
    console.print(Text(found["summary"]))
    return console


def finish_labels(root: Folder, labels: PseudoLabels, report: Report) -> None:
    """The last thing that `ssl-ray label` prints: what was labeled, and how to read it."""
    found = labels.results
    root.write_json("scores.json", [{"model": "labeler", "seed": 0, "split": "unlabeled", "metric": "mean_confidence",
                                     "value": found["mean_confidence"], "n": found["images"]}])  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in report.results["facts"]:
        table.add_row(Text(name), Text(str(value)))
    console = _show(table, report)
    console.print(Text(f"labels: {labels.labels.path}  ({found['files']:,} Parquet files)"))
    console.print("\nRead the labels:\n")
    console.print(
        Text(
            "    import pyarrow.dataset as ds\n"
            f"    table = ds.dataset({labels.labels.path!r}).to_table(columns=['image_id', 'label', 'confidence'])\n"
            "    from ssl_ray.artifacts import PseudoLabels\n"
            f"    names = PseudoLabels({labels.path!r}).results['classes']  # {len(found['classes']):,} classes"
        )
    )


def _show(table: Table | None, report: Report) -> Console:
    """Print what a job found, and where its report lies."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    console.print()
    if table is not None:
        console.print(table)
    console.print()
    console.print(Text(f"report: {report.folder.file('report.html')}"))
    return console
