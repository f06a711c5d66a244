"""The command line that every job has, and how a job ends."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_ray.config import ConfigT, flatten, override, parse_assignment
from ssl_ray.data.sources.listing import GRAMMAR
from ssl_ray.errors import ConfigError, SslRayError
from ssl_ray.lock import release_all
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
    show: bool = False

    def apply(self, recipe: ConfigT) -> ConfigT:
        """The recipe with what the command line changes; asked for all settings, print them and end."""
        chosen = override(recipe, self.settings)
        if self.show:
            for path, value in {**flatten(chosen), **flatten(self.scale, "scale")}.items():
                print(f"{path}={json.dumps(value)}")
            raise SystemExit(0)
        return chosen


def parse(job: str, description: str, recipes: Sequence[str], arguments: Sequence[str] | None = None) -> Options:
    """Read the command line of a job.

    Raises:
        ConfigError: an unknown or ill-typed setting of the scale.
    """
    return options_from(base_parser(job, description), recipes, arguments)[0]


def options_from(
    parser: argparse.ArgumentParser, recipes: Sequence[str], arguments: Sequence[str] | None = None, images: str = "images"
) -> tuple[Options, argparse.Namespace]:
    """The same with a parser that may know more words; they are in the namespace. `images`: which settings the user's own
    images are.

    Raises:
        ConfigError: an unknown or ill-typed setting of the scale.
    """
    parser.add_argument(
        "recipe", nargs="?", default="demo", metavar="RECIPE", help=f"one of {', '.join(recipes)} (default: demo)"
    )
    parser.add_argument("--labeled", metavar="SRC", help=f"labeled images: {GRAMMAR}")
    parser.add_argument("--unlabeled", metavar="SRC", help="unlabeled images")
    parser.add_argument(
        "--test", metavar="SRC", help="labeled test images; without it a fifth of the labeled ones is kept for it"
    )
    parsed = parser.parse_args(arguments)
    settings: dict[str, Any] = {}
    if parsed.labeled is not None:
        # A recipe's draws and its other sources belong to its own images.
        settings = {f"{images}.labeled": parsed.labeled, f"{images}.labels": None, f"{images}.test_images": None,
                    f"{images}.unlabeled": None, f"{images}.test": None}  # fmt: skip
    settings |= dict(parse_assignment(text) for text in parsed.settings)
    for name in ("unlabeled", "test"):
        if getattr(parsed, name) is not None:
            settings[f"{images}.{name}"] = getattr(parsed, name)
    return options_of(parsed, settings, parsed.recipe), parsed


def base_parser(job: str, description: str) -> argparse.ArgumentParser:
    """The words that mean the same in every job."""
    parser = argparse.ArgumentParser(prog=f"jobs/{job}.py", description=description)
    parser.add_argument("--root", default=f"runs/{job}", help="local folder or s3://bucket/prefix (default: %(default)s)")
    parser.add_argument("--scale", choices=sorted(SCALES), default="local", help="where to run (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="settings", help="change a setting; repeatable"
    )
    parser.add_argument(
        "--rerun", action="append", default=[], metavar="STAGE", help="compute a stage and what stands on it anew"
    )
    parser.add_argument("--plan", action="store_true", help="only say which stages would run; nothing is written")
    parser.add_argument("--settings", action="store_true", dest="show", help="only print all settings and their values")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def options_of(parsed: argparse.Namespace, settings: dict[str, Any], recipe: str = "") -> Options:
    """Part the settings of the scale from those of the recipe.

    Raises:
        ConfigError: an unknown or ill-typed setting of the scale.
    """
    scaling = {key.removeprefix("scale."): settings.pop(key) for key in list(settings) if key.startswith("scale.")}
    try:
        scale = override(SCALES[parsed.scale](), scaling)
    except ConfigError as error:
        raise ConfigError(f"scale: {error}") from None
    return Options(recipe, parsed.root, parsed.rerun, scale, settings, parsed.plan, parsed.debug, parsed.show)


def run_job(main: Callable[[], None]) -> int:
    """Run a job and turn its end into an exit code: 0 done, 2 the user's input, 3 a health gate, 1 anything else."""
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, _terminated)
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
    finally:
        release_all()


def _terminated(number: int, frame: Any) -> None:
    # A scheduler's stop is an interrupt like the user's: locks and Ray are let go, and what was written stands.
    raise KeyboardInterrupt
