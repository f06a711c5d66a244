"""The command line that every job has, and how a job ends."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_ray.config import ConfigT, override, parse_assignment
from ssl_ray.errors import ConfigError, SslRayError
from ssl_ray.scale import SCALES, Scale


@dataclass(frozen=True)
class Options:
    """What the command line says. Settings that begin with `scale.` go to the scale, all others to the recipe."""

    recipe: str
    root: str
    rerun: list[str]
    scale: Scale
    settings: dict[str, Any]
    plan: bool
    debug: bool

    def apply(self, recipe: ConfigT) -> ConfigT:
        return override(recipe, self.settings)


def parse(job: str, description: str, recipes: Sequence[str], arguments: Sequence[str] | None = None) -> Options:
    """Read the command line of a job.

    Raises:
        ConfigError: an unknown or ill-typed setting of the scale.
    """
    parser = argparse.ArgumentParser(prog=f"jobs/{job}.py", description=description)
    parser.add_argument(
        "recipe", nargs="?", default="demo", metavar="RECIPE", help=f"one of {', '.join(recipes)} (default: demo)"
    )
    parser.add_argument("--root", default=f"runs/{job}", help="local folder or s3://bucket/prefix (default: %(default)s)")
    parser.add_argument(
        "--labeled", metavar="SRC", help="labeled images: folder/ with class sub-folders, path/*.parquet, sample:NAME"
    )
    parser.add_argument("--unlabeled", metavar="SRC", help="unlabeled images")
    parser.add_argument(
        "--test", metavar="SRC", help="labeled test images; without it a fifth of the labeled ones is kept for it"
    )
    parser.add_argument("--scale", choices=sorted(SCALES), default="local", help="where to run (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="settings", help="change a setting; repeatable"
    )
    parser.add_argument(
        "--rerun", action="append", default=[], metavar="STAGE", help="compute a stage and what stands on it anew"
    )
    parser.add_argument("--plan", action="store_true", help="only say which stages would run; nothing is written")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    parsed = parser.parse_args(arguments)
    settings = dict(parse_assignment(text) for text in parsed.settings)
    if parsed.labeled is not None:
        # A recipe's draws and its other sources belong to its own images.
        settings = {"images.labeled": parsed.labeled, "images.labels": None, "images.test_images": None,
                    "images.unlabeled": None, "images.test": None} | settings  # fmt: skip
    for name in ("unlabeled", "test"):
        if getattr(parsed, name) is not None:
            settings[f"images.{name}"] = getattr(parsed, name)
    scaling = {key.removeprefix("scale."): settings.pop(key) for key in list(settings) if key.startswith("scale.")}
    try:
        scale = override(SCALES[parsed.scale](), scaling)
    except ConfigError as error:
        raise ConfigError(f"scale: {error}") from None
    return Options(parsed.recipe, parsed.root, parsed.rerun, scale, settings, parsed.plan, parsed.debug)


def run_job(main: Callable[[], None]) -> int:
    """Run a job and turn its end into an exit code: 0 done, 2 the user's input, 3 a health gate, 1 anything else."""
    debug = "--debug" in sys.argv
    try:
        main()
        return 0
    except SslRayError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
