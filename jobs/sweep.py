"""The same as `ssl-ray sweep`, for `ray job submit --working-dir . -- python jobs/sweep.py ...`."""

from __future__ import annotations

from ssl_ray.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main("sweep"))
