"""`Run`: a stage is computed once, and loaded ever after.

A job composes stages in plain Python; the order of the calls is the graph. There is no engine behind it: a stage is a
function of one config and some artifacts that fills a folder, and its record is written last.
"""

from __future__ import annotations

import platform
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ssl_ray.artifacts import Artifact, Record, Report
from ssl_ray.config import Config, canonical, differences, fingerprint
from ssl_ray.damage import RECORD, STARTED
from ssl_ray.errors import DamagedError, StaleStageError, UserError
from ssl_ray.lock import RootLock, hold, release
from ssl_ray.named_files import inputs_of
from ssl_ray.scale import Scale, check_devices
from ssl_ray.storage import Folder

StageFunction = Callable[..., dict[str, Any]]
Measure = Callable[[Artifact, StageFunction, Config, dict[str, Any]], Artifact]
"""What stands for a stage in a plan, its function, its settings and inputs, to what stands for it from then on."""


def stage(kind: type[Artifact], *, resumable: bool = False, derived: bool = False) -> Callable[[StageFunction], StageFunction]:
    """Marks `f(config, out, scale, **artifacts) -> results` as a stage that fills a folder of this kind.

    `results` goes into the record; `results["summary"]` is the line that the user sees. A resumable stage finds what an
    earlier call left in `out` and goes on; what any other stage left unfinished is thrown away. A derived stage takes
    seconds and loses nothing that its inputs do not hold: with other inputs it is computed anew, without being asked. Every
    report is one.
    """

    def mark(function: StageFunction) -> StageFunction:
        function.kind = kind  # type: ignore[attr-defined]
        function.resumable = resumable  # type: ignore[attr-defined]
        function.derived = derived or issubclass(kind, Report)  # type: ignore[attr-defined]
        return function

    return mark


MARK = ("name", "stage", "fingerprint", "computed", "built_on", "config", "inputs")
"""Keys of the mark that a stage leaves when it begins."""

DISCARDED: dict[str, Any] = {"discarded": True}
"""The mark of a stage that is being thrown away."""

SHARED = "stages"
"""Where several runs under one root keep their stages."""


class Run:
    """Runs the stages of a job under one root.

    A finished stage with the same fingerprint is loaded. A half-finished one with the same fingerprint goes on where it
    was. One with another fingerprint stops the job.
    """

    def __init__(
        self,
        root: str,
        scale: Scale,
        rerun: Sequence[str] = (),
        echo: Callable[[str], None] = print,
        plan: bool = False,
        shared: bool = False,
        measure: Measure | None = None,
        judged: Callable[[Artifact], None] = lambda artifact: None,
    ):
        """
        Args:
            root: local path or `s3://bucket/prefix`; made if it is missing.
            scale: where to run; never part of a fingerprint.
            rerun: stages to compute anew, with all that stands on them.
            echo: receives the lines that the user sees.
            plan: only say which stages would run; nothing is computed or written.
            measure: with `plan`: tries a sample of a stage that would be computed, somewhere else.
            shared: several runs with other settings work under this root, at once if they like (the trials of a sweep). A
                stage then lies in `stages/NAME/FINGERPRINT`, is never stale, and is computed by whoever needs it first
                while the others wait. The root's lock is the caller's affair.
            judged: is told of every artifact as soon as it is whole.

        Raises:
            StorageError: the root cannot be written, or another job is at work on it.
            UserError: a stage in `rerun` does not exist under the root.
        """
        self.root = Folder(root)
        self.scale = scale
        self.echo = echo
        self._rerun = set(rerun)
        self._renewed: set[str] = set()  # folders computed anew because of --rerun
        self.plan = plan
        self.shared = shared
        self.measure = measure
        self.stages: dict[str, Artifact] = {}  # what this run stands on, by name; in plans without results
        self.computed: list[str] = []  # names of those that this run computed itself
        self._judged = judged
        self._lock: RootLock | None = None
        if not plan:
            check_devices(scale)
        if not shared:
            self.root.ensure_writable(dry=plan)
        if not (plan or shared):
            self._lock = hold(self.root)
        for name in [] if shared else sorted(self._rerun):  # a sweep asks once, and not for every trial
            if not ((self.root / name).exists(STARTED) or (self.root / name).exists(RECORD)):
                raise UserError(f"--rerun {name}: there is no such stage under {root}; name one that has been run")

    def __call__(self, name: str, function: StageFunction, config: Config, **inputs: Any) -> Any:
        """The artifact of stage `name`, computed by `function(config, out, scale, **inputs)` if need be.

        Raises:
            StaleStageError: the folder was filled, wholly or in part, with other settings or inputs.
        """
        kind: type[Artifact] = function.kind  # type: ignore[attr-defined]
        identity = {
            "config": config.model_dump(mode="json"),
            "inputs": {key: _identity(value) for key, value in inputs.items() if value is not None},
        }
        identity["inputs"] |= inputs_of(config, lambda: self._started(self.root / name), required=not self.plan)
        mark = fingerprint({"stage": function.__name__, **identity})
        folder = self.root / (f"{SHARED}/{name}/{mark}" if self.shared else name)
        renewed = name in self._rerun or any(path in self._renewed for path in _paths(inputs))
        if renewed:
            self._renewed.add(folder.path)
        if self.plan:
            found = self._planned(name, folder, function, kind, mark, identity, renewed)
            if self.measure is not None and not found.record.computed:
                found = self.measure(found, function, config, inputs)
        elif self.shared and (known := self._known(kind, folder, inputs)) is not None:
            found = known
        elif self.shared:
            place = self.root / f"{SHARED}/_locks/{name.replace('/', '-')}-{mark}"
            self._lock = hold(place, wait=True)
            try:
                found = self._computed(name, folder, function, config, mark, identity, inputs, renewed)
            finally:
                release(place)
        else:
            found = self._computed(name, folder, function, config, mark, identity, inputs, renewed)
        self.stages[name] = found
        if not self.plan:
            self._judged(found)
        return found

    @staticmethod
    def _known(kind: type[Artifact], folder: Folder, inputs: dict[str, Any]) -> Artifact | None:
        """A finished stage, on these very computations of its inputs."""
        record = Record.load(folder)
        if record is None:
            return None
        started = Run._started(folder)
        whole = started is not None and not started.get("discarded") and started["built_on"] == _computations(inputs)
        if whole:
            _check_record(folder, record, started)
        return kind(folder.path) if whole else None

    def _computed(
        self,
        name: str,
        folder: Folder,
        function: StageFunction,
        config: Config,
        mark: str,
        identity: dict[str, Any],
        inputs: dict[str, Any],
        renewed: bool,
    ) -> Artifact:
        kind: type[Artifact] = function.kind  # type: ignore[attr-defined]
        if renewed:
            self.discard(folder)
        started = self._started(folder)
        if started is not None and started.get("discarded"):  # killed while it was being thrown away
            self.discard(folder)
            started = None
        record = Record.load(folder)
        if started is None and record is not None:
            raise folder.damaged(STARTED, "it is missing")
        if started is None and folder.holds_more_than(STARTED):
            raise UserError(f"{folder.path} holds files that no stage of ours wrote; choose another --root")
        if started is not None and record is None and not self._worth_keeping(function, folder):
            self.discard(folder)
            started = None
        built_on = _computations(inputs)
        fleeting = self.shared or function.derived  # type: ignore[attr-defined]
        if started is not None and fleeting and _other(started, mark, built_on):
            self.discard(folder)
            started = record = None
        if started is not None and _other(started, mark, built_on):
            raise _stale(name, folder, started, identity)
        _check_record(folder, record, started)
        if record is not None:
            self.echo(f"= {name:<18} {record.results.get('summary', '')}  (finished before)")
            return kind(folder.path)
        self.echo(f"> {name:<18} {'goes on with what is saved' if started is not None else 'starts'}")
        begin = time.perf_counter()
        computed = started["computed"] if started is not None else uuid.uuid4().hex
        mine = {"name": name, "stage": function.__name__, "fingerprint": mark, "computed": computed, "built_on": built_on}
        self._check_lock()
        folder.write_sealed(STARTED, mine | identity)
        results = function(config, folder, self.scale, **inputs)
        record = Record(
            kind=kind.__name__,
            stage=function.__name__,
            name=name,
            fingerprint=mark,
            config=identity["config"],
            inputs=identity["inputs"],
            results=canonical(results),
            versions=_versions(),
            commit=_commit(),
            wall_s=round(time.perf_counter() - begin, 3),
            computed=computed,
        )
        self._check_lock()
        record.save(folder)
        self.computed.append(name)
        took = f"{record.wall_s:.1f} s"
        if "work_s" in record.results:  # the rest is the start of workers, imports and records
            took += f", {max(0.0, record.wall_s - record.results['work_s']):.1f} s of it to start and to end"
        self.echo(f"+ {name:<18} {record.results.get('summary', '')}  ({took})")
        return kind(folder.path)

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _planned(
        self,
        name: str,
        folder: Folder,
        function: StageFunction,
        kind: type[Artifact],
        mark: str,
        identity: dict[str, Any],
        renewed: bool,
    ) -> Artifact:
        """Say what would happen. A fingerprint follows from settings alone, so stages that never ran can be planned on."""
        started = None if renewed else self._started(folder)
        record = None if renewed else Record.load(folder)
        finished = record is not None
        derived: bool = function.derived  # type: ignore[attr-defined]
        if renewed or started is None or started.get("discarded") or (started["fingerprint"] != mark and derived):
            state = "would be computed"
        elif started["fingerprint"] != mark and (finished or self._worth_keeping(function, folder)):
            raise _stale(name, folder, started, identity)
        elif finished:
            state = "is finished and would be loaded"
        else:
            state = "would go on" if self._worth_keeping(function, folder) else "would be computed"
        self.echo(f"  {name:<18} {state}")
        if finished and started is not None and started["fingerprint"] == mark:
            _check_record(folder, record, started)
            return kind(folder.path)  # what it found may decide which stages follow
        planned = kind.__new__(kind)
        planned.folder = folder
        planned.record = Record(kind.__name__, function.__name__, name, mark, identity["config"], identity["inputs"])
        return planned

    @staticmethod
    def _worth_keeping(function: StageFunction, folder: Folder) -> bool:
        """Whether an unfinished stage left work behind that its next call can use."""
        resumable: bool = function.resumable  # type: ignore[attr-defined]
        return resumable and folder.holds_more_than(STARTED)

    @staticmethod
    def _started(folder: Folder) -> dict[str, Any] | None:
        """Read the mark of a stage that began; None where there is none, or a damaged one with nothing else beside it.

        Raises:
            DamagedError: it cannot be read, was changed, or was written by a newer version.
        """
        if not folder.exists(STARTED):
            return None
        try:
            if folder.read_json(STARTED) == DISCARDED:
                return DISCARDED
            return folder.read_sealed(STARTED, MARK)
        except DamagedError:
            if folder.holds_more_than(STARTED):
                raise
            return DISCARDED

    @staticmethod
    def discard(folder: Folder) -> None:
        """Mark, then the record, then the rest, the mark last: a kill at any line leaves nothing that looks whole."""
        if folder.exists(STARTED) or folder.exists(RECORD):
            if not folder.holds_file(STARTED):
                folder.remove(STARTED)
            folder.write_json(STARTED, DISCARDED)
            folder.remove(RECORD)
            folder.delete(last=STARTED)


def _check_record(folder: Folder, record: Record | None, started: Mapping[str, Any] | None) -> None:
    """Check that the record belongs to the computation that began in this folder.

    Raises:
        DamagedError: it is another one's, copied here.
    """
    if record is not None and started is not None and record.computed != started["computed"]:
        raise folder.damaged(RECORD, f"it is the record of another computation (of stage {record.name}), copied here")


def _other(started: Mapping[str, Any], mark: str, built_on: list[str]) -> bool:
    """Whether a folder was begun with other settings, or on other computations of its inputs."""
    return bool(started["fingerprint"] != mark or started["built_on"] != built_on)


def stage_names(root: Folder) -> list[str]:
    """Stages with a record under a local root, by name."""
    base = Path(root.path)
    return sorted(str(path.parent.relative_to(base)) for path in base.rglob("_record.json"))


def _stale(name: str, folder: Folder, started: Mapping[str, Any], identity: Mapping[str, Any]) -> StaleStageError:
    before = {"config": started.get("config", {}), "inputs": started.get("inputs", {})}
    changed = differences(before, dict(identity)) or ["what it stands on was computed anew"]
    return StaleStageError(
        f"stage {name} was run with other settings ({'; '.join(changed)}); take the settings back, or compute it and "
        f"what stands on it anew with --rerun {name}, or choose another --root than {folder.path.removesuffix(name)}"
    )


def _identity(value: Any) -> Any:
    if isinstance(value, Artifact):
        return value.fingerprint
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    return canonical(value)


def _paths(value: Any) -> list[str]:
    if isinstance(value, Artifact):
        return [value.path]
    if isinstance(value, Mapping):
        return [path for item in value.values() for path in _paths(item)]
    if isinstance(value, list | tuple):
        return [path for item in value for path in _paths(item)]
    return []


def _computations(value: Any) -> list[str]:
    """Which computations the inputs are. Fingerprints follow from settings alone; these tell a recomputed input."""
    if isinstance(value, Artifact):
        return [value.record.computed]
    if isinstance(value, Mapping):
        return [found for item in value.values() for found in _computations(item)]
    if isinstance(value, list | tuple):
        return [found for item in value for found in _computations(item)]
    return []


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ssl-ray", "ray", "torch", "torchvision", "timm", "pyarrow", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return ""
    try:
        answer = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # a container without git
        return ""
    return answer.stdout.strip()
