"""The command line that every job has, and how a job ends."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from pydantic import ValidationError

from ssl_ray.cluster import is_lost
from ssl_ray.config import ConfigT, flatten, override, parse_assignment, problems_of
from ssl_ray.data.sources.listing import GRAMMAR
from ssl_ray.entry import INTERRUPTED, end_now, hear, say
from ssl_ray.errors import ConfigError, SslRayError
from ssl_ray.explain import explain
from ssl_ray.lock import release_all
from ssl_ray.paths import escaped
from ssl_ray.redaction import carries_secrets, redact
from ssl_ray.scale import SCALES, Scale, automatic
from ssl_ray.stage import Run
from ssl_ray.values import check_text, parse_json


@dataclass(frozen=True)
class Options:
    """What the command line says. Settings that begin with `scale.` go to the scale, all others to the recipe."""

    recipe: str
    root: str
    rerun: list[str]
    scale: Scale
    settings: dict[str, Any]
    plan: str | None
    debug: bool
    show: str | None = None  # settings to print; empty: all
    on: str | None = None
    heap: int | None = None
    prices: str | None = None
    reason: str = ""  # for a scale that was chosen automatically

    @contextlib.contextmanager
    def run(self, shared: bool = False) -> Iterator[Run]:
        """A run under the root; or, for a plan, one that tries samples, and says what the whole would take when it ends.

        Raises:
            ConfigError: a machine that the table of prices does not have.
        """
        if self.reason:
            print(f"Runs {self.reason}", flush=True)
        if self.plan is None:
            yield Run(self.root, self.scale, self.rerun)
            return
        from ssl_ray.planning.busy import Others
        from ssl_ray.planning.machines import described, prices
        from ssl_ray.planning.measure import Planner
        from ssl_ray.planning.table import show_plan

        table = prices(self.prices)
        cluster = described(self.on, table) if self.on is not None else None
        if self.plan == "stages":
            yield Run(self.root, self.scale, self.rerun, plan=True, shared=shared)
            return

        def say(line: str) -> None:
            print(f"trying a sample: {line.split()[0]}" if "computed" in line or "go on" in line else line.strip(), flush=True)

        others = Others()
        with Planner(self.scale, self.heap) as planner:
            yield Run(self.root, self.scale, self.rerun, echo=say, plan=True, measure=planner, shared=shared)
            show_plan(planner.estimates, self.scale, cluster, table, others.warning())

    def apply(self, recipe: ConfigT) -> ConfigT:
        """Return the recipe with what the command line changes; if settings are asked for, print them and end.

        Raises:
            ConfigError: an unknown or ill-typed setting, or no setting matches.
        """
        chosen = override(recipe, self.settings)
        if self.show:
            explained = [*explain(chosen, self.show), *explain(self.scale, self.show, "scale")]
            if not explained:
                raise ConfigError(f"no setting matches {self.show!r}; --settings lists all")
            for setting in explained:
                print(f"{setting.path}={setting.value}\n    {setting.type}{setting.meaning and f'; {setting.meaning}'}")
            raise SystemExit(0)
        if self.show is not None:
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
    own = parser.add_argument_group("your images")
    own.add_argument("--labeled", metavar="SRC", help=f"labeled images: {GRAMMAR}")
    own.add_argument("--unlabeled", metavar="SRC", help="unlabeled images")
    own.add_argument("--test", metavar="SRC", help="labeled test images (default: a fifth of the labeled ones)")
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


OWN_LABELS, OWN_HEAP = "--labeled", "--unlabeled"
"""How `owned` names the user's own images."""


def owned(options: Options, parsed: argparse.Namespace) -> list[str]:
    """The settings that were given, and `--labeled` and `--unlabeled`, where they were.

    Raises:
        ConfigError: test images without labeled ones.
    """
    if parsed.test is not None and parsed.labeled is None:
        raise ConfigError("--test needs --labeled: whose test images are they?")
    found = [f"--{name}" for name in ("labeled", "unlabeled") if getattr(parsed, name) is not None]
    return [*options.settings, *found]


class Parser(argparse.ArgumentParser):
    """A parser that answers every mistake with one line, and repeats no credentials."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments.

        Raises:
            ConfigError: one is unknown or missing, is empty, is not UTF-8, or holds credentials.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        for place, argument in enumerate(arguments):
            name = argument.partition("=")[0] if argument.startswith("--") else arguments[place - 1] if place else ""
            name = name if name.startswith("--") and name.isascii() else f"argument {place + 1}"
            if carries_secrets(argument):
                raise ConfigError(
                    f"{name}: credentials and options of a server do not belong onto a command line, which others can read; "
                    "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL"
                )
            try:
                check_text(argument)
            except ValueError as error:
                raise ConfigError(f"{name}: {error} ({escaped(argument)[:60]})") from None
        parsed = super().parse_args(arguments, namespace)
        for name, value in vars(parsed).items():
            if any(isinstance(item, str) and not item.strip() for item in (value if isinstance(value, list) else [value])):
                option = next((action for action in self._actions if action.dest == name), None)
                written = option.option_strings[-1] if option and option.option_strings else name.upper()
                raise ConfigError(f"{written} is empty; give a value, or leave it out")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError in place of argparse's usage and exit."""
        raise ConfigError(f"{message}; --help shows what there is")


def whole(text: str) -> int:
    """Parse a whole number of the command line: plain digits in ASCII.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if type(value) is not int:
        raise argparse.ArgumentTypeError("give a whole number")
    return value


def base_parser(job: str, description: str, scale: str = "auto") -> argparse.ArgumentParser:
    """The words that mean the same in every job. `scale`: where it runs, unless it is told."""
    command = "rethinking" if job == "self_training" else job.replace("_", "-")
    parser = Parser(prog=f"ssl-ray {command}", description=description)
    where = parser.add_argument_group("where")
    where.add_argument(
        "--root", default=f"runs/{job}", help="local folder or s3://bucket/prefix for all results (default: %(default)s)"
    )
    where.add_argument(
        "--scale",
        choices=["auto", *sorted(SCALES)],
        default=scale,
        help="inline: in this process; local: on a Ray of this machine; cluster: a GPU for each worker; auto: inline or "
        "local, and it says why (default: %(default)s)",
    )
    settings = parser.add_argument_group("settings")
    settings.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="settings", help="change a setting; repeatable"
    )
    settings.add_argument(
        "--settings",
        nargs="?",
        const="all",
        dest="show",
        metavar="PATTERN",
        help="only print the settings: all with their values, or those that match, with type and meaning",
    )
    stages = parser.add_argument_group("stages")
    stages.add_argument(
        "--rerun",
        action="append",
        default=[],
        metavar="STAGE",
        help="recompute this stage and everything that depends on it; repeatable",
    )
    stages.add_argument(
        "--plan",
        nargs="?",
        const="measure",
        choices=["measure", "stages"],
        help="write nothing: try a sample of every stage and estimate the time of all; `stages`: only name them",
    )
    stages.add_argument("--on", metavar="NxMACHINE", help="with --plan: on which cluster, such as 4xg5.2xlarge")
    stages.add_argument("--heap", type=whole, metavar="N", help="with --plan: as if there were N unlabeled images")
    stages.add_argument("--prices", metavar="FILE", help="with --plan: machines and prices (ssl_ray/planning/machines.json)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def options_of(parsed: argparse.Namespace, settings: dict[str, Any], recipe: str = "") -> Options:
    """Part the settings of the scale from those of the recipe.

    Raises:
        ConfigError: an unknown or ill-typed setting of the scale.
    """
    scaling = {key.removeprefix("scale."): settings.pop(key) for key in list(settings) if key.startswith("scale.")}
    name, reason = automatic(scaling) if parsed.scale == "auto" else (parsed.scale, "")
    try:
        scale = override(SCALES[name](), scaling)
    except ConfigError as error:
        raise ConfigError(f"scale: {error}") from None
    found = Options(
        recipe,
        parsed.root,
        parsed.rerun,
        scale,
        settings,
        parsed.plan,
        parsed.debug,
        "" if parsed.show == "all" else parsed.show,
    )
    for name in ("on", "heap", "prices"):
        if getattr(parsed, name) is not None and parsed.plan is None:
            raise ConfigError(f"--{name} belongs to --plan: add it, or leave --{name} out")
    if parsed.heap is not None and parsed.heap < 1:
        raise ConfigError(f"--heap {parsed.heap}: give the number of unlabeled images, one or more")
    return replace(found, on=parsed.on, heap=parsed.heap, prices=parsed.prices, reason=reason)


def run_job(main: Callable[[], Any]) -> int:
    """Run a job and turn its end into an exit code: 0 done, 2 the user's input, 3 a health gate, 130 stopped, 1 anything else.

    The first Ctrl-C or SIGTERM stops the job, the second one is ignored while locks and Ray are let go, a third one ends the
    process at once.
    """
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    hear(stop)
    try:
        code = _code_of(main, stopped)
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        hear(lambda number, frame: hear(end_now))
        release_all()
    if code == INTERRUPTED and is_lost():
        code = 1
    if code == INTERRUPTED:
        say("stopped; the same command goes on with what is saved")
    sys.stdout.flush()
    lost = getattr(sys.stdout, "problem", None)
    if code == 0 and lost is not None and not isinstance(lost, BrokenPipeError):
        say(f"error: standard output was lost ({lost.strerror}); what was computed is saved under the root")
        return 2
    return code


def _code_of(main: Callable[[], Any], stopped: list[int]) -> int:
    debug = "--debug" in sys.argv
    try:
        main()
        return 0
    except SystemExit as end:  # --help and --settings
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (SslRayError, ValidationError) as error:
        if debug:
            print(redact(traceback.format_exc()), file=sys.stderr)
        message = problems_of(error) if isinstance(error, ValidationError) else str(error)
        line = re.sub(r"(\S{60})\S{340,}", r"\1...", escaped(" ".join(redact(message).split())))
        print(f"error: {line}", file=sys.stderr)
        return error.exit_code if isinstance(error, SslRayError) else 2
    except Exception:
        if stopped:  # a library that was interrupted while it was imported says so in words of its own
            return INTERRUPTED
        print(redact(traceback.format_exc()), file=sys.stderr)
        return 1
