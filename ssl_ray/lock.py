"""Lock of a root: one job at a time, because two that write the same stages would mix their work.

On a disk the lock is the kernel's (`flock`), which ends with its process, however that dies. On S3 it is a lease: an object
that is taken by conditional writes. Its owner renews it every few seconds; a lease that is not renewed is free after a while.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from typing import Any

from ssl_ray.errors import HeldError, StorageError
from ssl_ray.filesystems import explained, real_path
from ssl_ray.paths import is_local
from ssl_ray.storage import Folder
from ssl_ray.values import parse_json

LOCK = "_lock.json"
WAIT_S = 0.5
RENEW_S = 5.0
LEASE_S = 20.0
"""Seconds without renewal after which a lease is free."""

_held: dict[str, RootLock] = {}


def hold(root: Folder, wait: bool = False) -> RootLock | None:
    """Take the lock of a root for this process, until it ends; a second call in the same process does nothing.

    Args:
        wait: wait until another job that holds it releases it.

    Raises:
        HeldError: another job holds it; the message names its host, process and start.
    """
    key = real_path(root.path)
    if key not in _held:
        while True:
            if is_local(root.path):
                lock: RootLock = _Flock(root)
            elif root.path.startswith("s3://"):
                lock = _Lease(root, quiet=wait)
            else:
                return None  # other object stores of pyarrow: no conditional writes to lean on
            try:
                lock.acquire()
                break
            except HeldError:
                if not wait:
                    raise
            time.sleep(WAIT_S if is_local(root.path) else RENEW_S)
        _held[key] = lock
        atexit.register(release, root)
    return _held[key]


def check_held() -> None:
    """Raise StorageError if this process has lost one of its locks."""
    for lock in _held.values():
        lock.check()


def release(root: Folder) -> None:
    """Release the lock, if this process holds it. If its server is away, the lease expires by itself."""
    with contextlib.suppress(StorageError):
        lock = _held.pop(real_path(root.path), None)
        if lock is not None:
            lock.release()


def release_all() -> None:
    """Release all locks of this process, at the end of a job."""
    for lock in _held.values():
        lock.release()
    _held.clear()


class RootLock(ABC):
    """Lock of a root, on a disk or on S3."""

    def __init__(self, root: Folder):
        self.root = root
        self.me: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }

    @abstractmethod
    def acquire(self) -> None:
        """Take the lock; raise StorageError if another job holds it."""

    @abstractmethod
    def release(self) -> None:
        """Release the lock for the next job."""

    @abstractmethod
    def check(self) -> None:
        """Raise StorageError if the lock was lost."""

    def refusal(self, other: dict[str, Any]) -> HeldError:
        who = f"process {other.get('pid', '?')} on {other.get('host', '?')} since {other.get('since', '?')}"
        return HeldError(
            f"another job is at work on {self.root.path} ({who}); wait for it, stop it, or choose another --root for this one"
        )


class _Flock(RootLock):
    def acquire(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows, where Ray has no clusters either
            return
        path = os.path.join(real_path(self.root.path), LOCK)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # O_CLOEXEC: a Ray process that outlives the job must not hold it. O_NONBLOCK: the file may be a pipe.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except IsADirectoryError:
            raise StorageError(f"{path} is a folder, and no lock of a job; delete it, or choose another --root") from None
        except PermissionError:
            raise StorageError(f"{path} belongs to another user; change its rights, or choose another --root") from None
        except OSError as error:
            raise explained(path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = _read_start(self._file)
            os.close(self._file)
            raise self.refusal(_parse(text)) from None
        except OSError:
            return  # a file system without locks
        with contextlib.suppress(OSError):  # on a full disk the lock holds, without its owner's name
            os.ftruncate(self._file, 0)
            os.write(self._file, json.dumps(self.me).encode())

    def release(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def check(self) -> None:
        """Do nothing: the kernel keeps the lock as long as the process lives."""


class _Lease(RootLock):
    def __init__(self, root: Folder, quiet: bool = False):
        super().__init__(root)
        self._quiet = quiet
        import boto3
        from botocore.config import Config

        self._client = boto3.client(
            "s3",
            region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None,
            config=Config(retries={"max_attempts": 6, "mode": "standard"}, connect_timeout=10),
        )
        bucket, _, prefix = real_path(root.path).removeprefix("s3://").partition("/")
        self._where = {"Bucket": bucket, "Key": f"{prefix}/{LOCK}".lstrip("/")}
        self._stop, self._lost, self._tag = threading.Event(), False, ""

    def acquire(self) -> None:
        told, watched, since = False, "", time.monotonic()
        while not self._put(IfNoneMatch="*"):
            other, tag = self._read()
            if not tag:  # released meanwhile, or the server did not answer
                watched = ""
                time.sleep(0.2)
                continue
            if tag != watched:  # renewed since the last look, so its owner lives
                if watched:
                    raise self.refusal(other)
                watched, since = tag, time.monotonic()
            dead = other.get("machine") == self.me["machine"] and not _alive(other.get("pid"))
            if (dead or time.monotonic() - since > LEASE_S) and self._put(IfMatch=tag):
                break
            if not (told or dead or self._quiet):
                told = True
                print(f"{self.root.path} is held by process {other.get('pid')} on {other.get('host')}; "
                      f"seeing whether it is alive ({LEASE_S:.0f} s)", flush=True)  # fmt: skip
            time.sleep(min(1.0, RENEW_S / 5))
        threading.Thread(target=self._renew, name="root-lease", daemon=True).start()

    def release(self) -> None:
        self._stop.set()
        if not self._lost and self._read()[0].get("owner") == self.me["owner"]:
            with contextlib.suppress(Exception):  # the server is away: the lease ends by itself
                self._client.delete_object(**self._where)

    def check(self) -> None:
        if self._lost:
            raise self.refusal(self._read()[0])

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                if not self._put(IfMatch=self._tag):
                    self._lost = True
                    return
            except StorageError:
                continue  # the server is away; if another job takes the old lease meanwhile, the next renewal fails

    def _put(self, **condition: str) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        body = json.dumps(self.me | {"renewed": time.time()}).encode()
        try:
            self._tag = self._client.put_object(**self._where, Body=body, **condition)["ETag"]
            return True
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404"):
                other, tag = self._read()
                if other.get("owner") != self.me["owner"]:
                    return False
                self._tag = tag  # ours: the answer to an earlier try got lost on the way
                return True
            raise StorageError(
                f"{self.root.path}: cannot take its lock: {code}; check the bucket and the AWS variables"
            ) from None
        except BotoCoreError as error:
            raise StorageError(f"{self.root.path}: cannot take its lock: {error}") from None

    def _read(self) -> tuple[dict[str, Any], str]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.get_object(**self._where)
            return _parse(answer["Body"].read().decode(errors="replace")), str(answer["ETag"])
        except (ClientError, BotoCoreError):
            return {}, ""


def _read_start(file: int) -> str:
    try:
        return os.read(file, 4096).decode(errors="replace")
    except OSError:
        return ""


def _parse(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    """Identify this boot of this machine and its process namespace, because two containers may share a host name."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return f"{stream.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _alive(pid: Any) -> bool:
    if type(pid) is not int:  # a lock that somebody edited
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid > 0
