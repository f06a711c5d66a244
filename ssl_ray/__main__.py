"""The program `ssl-ray`, and `python -m ssl_ray`."""

from __future__ import annotations

import sys

from ssl_ray.entry import enter


def main(command: str | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        command: its first word, where a program stands for one command; None: the arguments hold it.
    """
    enter()  # before the imports
    from ssl_ray.cli import run_job
    from ssl_ray.commands import run

    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    return run_job(lambda: run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
