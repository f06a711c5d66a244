"""The same as `ssl-ray simclrv2`, for `ray job submit --working-dir . -- python jobs/simclrv2.py ...`."""

from __future__ import annotations

from ssl_ray.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main("simclrv2"))
