"""Tables of docs/sweeps.md and docs/cluster.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.markdown import NOT_YET, conditions, table
from benchmarks.record import load


def answer() -> str:
    record = load("sweep-demo")
    if record is None:
        return NOT_YET
    lines = "".join(f"> {line}\n>\n" for line in record["answer"][:4])
    return (
        f"{lines}\n`ssl-ray sweep demo`, {record['seeds']} seeds, {record['wall_s'] / 60:.0f} minutes. {conditions(record)}.\n"
    )


def recipes() -> str:
    """What the named sweeps that were run found."""
    found = [
        (name, load(f"sweep-{name}")) for name in ("demo", "noisy-student-ablations", "simclrv2-labels", "clusters", "figure1")
    ]
    text = ""
    for name, record in found:
        if record is None:
            continue
        rows = [[row["setting"], row["shown"], row["gain"], str(row["seeds"])] for row in record["table"]]
        text += f"\n`{name}`{record.get('changed', '')}:\n\n"
        text += table(f"setting: model | {record['metric']} on test, % ± sd | gain, points (95 % interval) | seeds", rows)
        text += f"\n{record['trials']} trials, {record['wall_s'] / 60:.0f} minutes. {conditions(record)}.\n"
    missing = [f"`{name}`" for name, record in found if record is None]
    if missing:
        text += f"\nNot measured yet: {', '.join(missing)} (`python -m benchmarks.sweep_recipes NAME`).\n"
    return text.lstrip("\n") or NOT_YET


def share() -> str:
    record = load("sweep_share")
    if record is None:
        return NOT_YET
    rows = [
        ["the whole command", f"{record['wall_s']:.0f} s"],
        [f"different work: {record['stages_different']} stages of the {record['stages_asked']} that trials ask for",
         f"{record['work_s']:.0f} s"],
        ["ratio (asked: at most 1.1)", f"{record['ratio']:.3f}"],
        ["if every trial had done its own", f"{record['apart_s']:.0f} s"],
        ["the same command again", f"{record['again_s']:.0f} s"],
    ]  # fmt: skip
    words = " ".join(record["words"])
    return table("twelve trials that share a teacher | ", rows, f"`ssl-ray sweep {words}`. {conditions(record)}.")


def plans(name: str = "plan_accuracy") -> str:
    record = load(name)
    if record is None:
        return NOT_YET
    rows = [
        [f"`{case['command']}`", f"{case['predicted_s']:.0f} s", f"{case['run_s']:.0f} s", f"{100 * case['off']:+.0f} %",
         f"{case['plan_s']:.0f} s"]
        for case in record["cases"]
    ]  # fmt: skip
    note = "Asked: within 25 %. The run's time is that of its stages, as records give it."
    return table("command | planned | the run took | off | the plan took", rows, f"{note} {conditions(record)}.")


def submitting() -> str:
    record = load("submit_time")
    if record is None:
        return NOT_YET
    rows = [
        [
            str(number + 1),
            *(f"{run.get(key, float('nan')):.1f} s" for key in ("submitted", "first_stage", "training", "first_step")),
        ]
        for number, run in enumerate(record["runs"])
    ]
    note = "`ssl-ray noisy-student tiny` on a head that is up; asked: the first step within 30 s. Job 1 warms the cluster."
    return table(
        "job | submitted | its first stage starts | training starts | first step logged", rows, f"{note} {conditions(record)}."
    )


def nodes() -> str:
    record = load("label_nodes")
    if record is None:
        return NOT_YET
    rates = {
        count: max(run["files_per_s"] for run in record["runs"] if run["nodes"] == int(count)) for count in record["linear"]
    }
    rows = [
        [count, f"{rates[count] * record['images_a_file']:.1f}", f"{share:.3f}"] for count, share in record["linear"].items()
    ]
    note = (
        f"A forward pass of {record['images_a_file']} images sleeps {record['sleep_s']:.1f} s, so that two cores do not lie; "
        "the rest is real. Better of two turns, from the first files of all actors to the last. Asked: 0.9."
    )
    return table("nodes | images a second | of linear", rows, f"{note} {conditions(record)}.")


def on_gpu() -> str:
    record = load("on_gpu")
    if record is None:
        return NOT_YET
    rows = [[row["what"], row["value"]] for row in record["rows"]]
    return table("what | measured", rows, f"Read {record['read']}. {conditions(record)}.")


SWEEPS: dict[str, Callable[[], str]] = {
    "sweep_answer": answer,
    "sweep_recipes": recipes,
    "sweep_share": share,
    "plan_accuracy": plans,
    "plan_again": partial(plans, "plan_again"),
    "submit_time": submitting,
    "label_nodes": nodes,
    "on_gpu": on_gpu,
}
