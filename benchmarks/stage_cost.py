"""What a stage costs beyond its work: start of workers, imports, records. From the records of a finished run.

Only stages that start workers are listed: the others are nothing but their work.

python -m benchmarks.stage_cost runs/noisy_student
"""

from __future__ import annotations

import sys

from benchmarks.record import save
from ssl_ray.artifacts import Record
from ssl_ray.stage import stage_names
from ssl_ray.storage import Folder


def main() -> None:
    root = Folder(sys.argv[1] if len(sys.argv) > 1 else "runs/noisy_student")
    rows = []
    for name in stage_names(root):
        record = Record.load(root / name)
        assert record is not None
        if "work_s" not in record.results:
            continue
        work = float(record.results["work_s"])
        rows.append({"stage": name, "wall_s": record.wall_s, "work_s": work, "beyond_s": round(record.wall_s - work, 2)})
    save("stage_cost", {"stages": rows})
    print(f"{'stage':<20} {'wall s':>8} {'work s':>8} {'beyond s':>9}")
    for row in rows:
        print(f"{row['stage']:<20} {row['wall_s']:8.1f} {row['work_s']:8.1f} {row['beyond_s']:9.1f}")


if __name__ == "__main__":
    main()
