"""The same as `ssl-ray hpt`, for `ray job submit --working-dir . -- python jobs/hpt.py ...`."""

from __future__ import annotations

from ssl_ray.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main("hpt"))
