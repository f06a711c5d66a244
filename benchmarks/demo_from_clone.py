"""From `git clone` to the report: `make demo` in a fresh clone with an empty home for caches, installation included.

python -m benchmarks.demo_from_clone
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.record import save


def main() -> None:
    source = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(source), str(clone)], check=True)
        kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "UV_CACHE_DIR")}
        home = Path(folder) / "home"
        home.mkdir()
        environment = kept | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        begin = time.monotonic()
        subprocess.run(["make", ".venv/.ready"], cwd=clone, env=environment, check=True)
        installed = time.monotonic()
        subprocess.run(["make", "demo"], cwd=clone, env=environment, check=True)
        done = time.monotonic()
        assert (clone / "runs/noisy_student/report/report.html").exists()
    save("demo_from_clone", {"install_s": round(installed - begin, 1), "demo_s": round(done - installed, 1),
                             "total_s": round(done - begin, 1)})  # fmt: skip
    print(f"installation {installed - begin:.0f} s, demo {done - installed:.0f} s, together {done - begin:.0f} s")


if __name__ == "__main__":
    main()
