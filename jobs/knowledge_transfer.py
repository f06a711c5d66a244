"""The same as `ssl-ray knowledge-transfer`, for `ray job submit --working-dir . -- python jobs/knowledge_transfer.py ...`."""

from __future__ import annotations

from ssl_ray.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main("knowledge-transfer"))
