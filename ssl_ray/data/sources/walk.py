"""Walk through the files below a folder, local or `s3://`. Every file is listed once; what is not used is counted by reason.

Links are followed unless they lead to files that are listed anyway. Real folders come first, then folders behind links in the
order of their paths, so that the same tree gives the same list on every machine.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow.fs as pafs

from ssl_ray.data.sources.listing import LEFTOVER, LISTING_THREADS, Listing, escaped, is_leftover
from ssl_ray.errors import SourceError, StorageError
from ssl_ray.filesystems import file_info, patient, resolve
from ssl_ray.paths import is_local

DEAD = "a link that leads nowhere"
TWICE = "a link to images that are listed elsewhere in the source"
ABOVE = "a link to a folder that holds the source itself"
SPECIAL = "not a file (a pipe, socket or device)"
UNREADABLE = "may not be read by this user"
ODD_NAME = "a name that is not UTF-8"


class _Folder(NamedTuple):
    path: str
    real: str  # path with all links resolved


class _Linked(NamedTuple):
    """A file that is a link, or lies behind one."""

    info: pafs.FileInfo
    identity: tuple[int, int]  # device and inode
    is_link: bool


@dataclass
class _Found:
    """Content of one folder, or of a folder and everything below it."""

    files: list[pafs.FileInfo] = field(default_factory=list)
    folders: list[_Folder] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to folders
    linked: list[_Linked] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)  # reason and name


def walk(source: str, listing: Listing | None = None) -> Iterator[list[pafs.FileInfo]]:
    """Yield all files below a folder, in pieces; sub-folders are listed in parallel.

    Args:
        listing: counts what is skipped: leftovers, links without a target or to files that are listed anyway, pipes, devices,
            and names that are not UTF-8.

    Raises:
        StorageError: a folder cannot be read.
        SourceError: a folder was deleted during the walk.
    """
    base = resolve(source)[1]
    tree: _Tree = _LocalTree(base) if is_local(source) else _RemoteTree(source)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for found in tree.walk(pool):
            if listing is not None:
                for reason, name in found.dropped:
                    listing.drop(reason, name)
            yield found.files


def names_below(folder: str, suffix: str, listing: Listing | None = None) -> list[str]:
    """List the sorted names of the files below a folder that end in `suffix`, as `walk` finds them; none without a folder."""
    if file_info(folder).type != pafs.FileType.Directory:
        return []
    base = resolve(folder)[1]
    return sorted(
        entry.path[len(base) :].lstrip("/") for found in walk(folder, listing) for entry in found if entry.path.endswith(suffix)
    )


def first_level(source: str) -> list[str]:
    """List the sorted names of the folders directly in a folder, with links to folders and without leftovers."""
    filesystem, base = resolve(source)
    if is_local(source):
        names = [entry.name for entry in _entries(base) if os.path.isdir(entry.path)]
    else:
        found = patient(source, lambda: filesystem.get_file_info(pafs.FileSelector(base)))
        names = [item.base_name for item in found if item.type == pafs.FileType.Directory]
    return sorted(name for name in names if not is_leftover(name))


class _Tree(ABC):
    """A base folder, and how to list a folder in it."""

    base: _Folder

    @abstractmethod
    def scan(self, folder: _Folder) -> _Found:
        """List one folder."""

    def scan_below(self, folder: _Folder) -> _Found:
        """List a folder and everything below it."""
        whole, waiting = _Found(), [folder]
        while waiting:
            found = self.scan(waiting.pop())
            waiting += reversed(found.folders)
            whole.files += found.files
            whole.links += found.links
            whole.linked += found.linked
            whole.dropped += found.dropped
        return whole

    def walk(self, pool: ThreadPoolExecutor) -> Iterator[_Found]:
        yield from self.walk_folder(self.base, pool)

    def walk_folder(self, top: _Folder, pool: ThreadPoolExecutor) -> Iterator[_Found]:
        folders = [top]
        # Breadth first, until there are enough folders to keep all threads busy.
        for _ in range(4):
            if not folders or len(folders) >= 2 * LISTING_THREADS:
                break
            deeper: list[_Folder] = []
            for found in pool.map(self.scan, folders):
                deeper += found.folders
                yield found
            folders = deeper
        for start in range(0, len(folders), 2 * LISTING_THREADS):
            yield from pool.map(self.scan_below, folders[start : start + 2 * LISTING_THREADS])


class _RemoteTree(_Tree):
    """Keys of an object store, as folders."""

    def __init__(self, source: str):
        self._source = source
        self._filesystem, base = resolve(source)
        self.base = _Folder(base, base)

    def scan(self, folder: _Folder, recursive: bool = False) -> _Found:
        selector = pafs.FileSelector(folder.path, recursive=recursive)
        found = _Found()
        for item in patient(self._source, lambda: self._filesystem.get_file_info(selector)):
            inside = item.path[len(self.base.path) :].lstrip("/")
            if item.type == pafs.FileType.Directory:
                found.folders.append(_Folder(item.path, item.path))
            elif is_leftover(inside):
                found.dropped.append((LEFTOVER, inside))
            else:
                found.files.append(item)
        found.folders.sort()
        return found

    def scan_below(self, folder: _Folder) -> _Found:
        return self.scan(folder, recursive=True)  # one request per thousand keys instead of one per folder


class _LocalTree(_Tree):
    """A folder on a disk, with links.

    Links to folders are followed last, and only if their target is not below a folder that is listed anyway. Links to files
    are remembered by device and inode, which takes about 100 bytes of memory each.
    """

    def __init__(self, base: str):
        self.base = _Folder(base.rstrip("/"), os.path.realpath(base).rstrip("/"))
        self._roots: list[str] = [self.base.real]  # folders that are listed with all below them
        self._linked: set[tuple[int, int]] = set()

    def walk(self, pool: ThreadPoolExecutor) -> Iterator[_Found]:
        waiting: list[str] = []

        def through(top: _Folder) -> Iterator[_Found]:
            for found in self.walk_folder(top, pool):
                self._take_linked(found)
                waiting.extend(found.links)
                yield found

        yield from through(self.base)
        while waiting:
            waiting.sort()
            link = waiting.pop(0)
            real = os.path.realpath(link)
            if f"{self.base.real}/".startswith(f"{real.rstrip('/')}/") and real != self.base.real:
                yield _Found(dropped=[(ABOVE, self._inside(link))])
            elif self._is_listed(real):
                yield _Found(dropped=[(TWICE, self._inside(link))])
            else:
                self._roots.append(real)
                yield from through(_Folder(link, real))

    def scan(self, folder: _Folder) -> _Found:
        found = _Found()
        hidden = is_leftover(self._inside(folder.path))
        try:
            entries = _entries(folder.path or "/")
        except StorageError:
            if not hidden:
                raise
            return _Found(dropped=[(LEFTOVER, self._inside(folder.path))])
        for entry in entries:
            path = f"{folder.path}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                real = f"{folder.real}/{entry.name}"
                if real in self._roots:
                    found.dropped.append((TWICE, self._inside(path)))
                else:
                    found.folders.append(_Folder(path, real))
            elif hidden or is_leftover(entry.name):
                found.dropped.append((LEFTOVER, self._inside(path)))
            elif reason := self._add(found, path, entry):
                found.dropped.append((reason, self._inside(path)))
        return found

    def _add(self, found: _Found, path: str, entry: os.DirEntry[str]) -> str:
        """Add a file or link; return the reason if it is not used, or ""."""
        try:
            status = entry.stat()
        except OSError:
            return DEAD if entry.is_symlink() else UNREADABLE
        if stat.S_ISDIR(status.st_mode):
            found.links.append(path)
        elif not stat.S_ISREG(status.st_mode):
            return SPECIAL
        elif not is_text(path):
            return ODD_NAME
        else:
            info = pafs.FileInfo(path, pafs.FileType.File, mtime_ns=status.st_mtime_ns, size=status.st_size)
            if entry.is_symlink() and self._is_listed(os.path.realpath(path)):
                return TWICE
            if entry.is_symlink() or len(self._roots) > 1:
                found.linked.append(_Linked(info, (status.st_dev, status.st_ino), entry.is_symlink()))
            else:
                found.files.append(info)
        return ""

    def _inside(self, path: str) -> str:
        return path[len(self.base.path) + 1 :]

    def _is_listed(self, real: str) -> bool:
        """Return whether a file or folder, as a path without links, is listed anyway, without following a link to it."""
        for root in self._roots:
            if real == root or (real.startswith(f"{root}/") and not is_leftover(real[len(root) + 1 :])):
                return True
        return False

    def _take_linked(self, found: _Found) -> None:
        """Move files behind links to the files, each once. Not in the threads of `scan`, so that the order is fixed."""
        for info, identity, is_link in found.linked:
            if identity in self._linked:
                found.dropped.append((TWICE, self._inside(info.path)))
                continue
            found.files.append(info)
            if is_link:
                self._linked.add(identity)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """List a local folder, sorted by name."""

    def scan() -> list[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    try:
        return patient(escaped(folder), scan)
    except FileNotFoundError:
        raise SourceError(f"{escaped(folder)} was deleted while it was listed; run the same command again") from None


def is_text(name: str) -> bool:
    """Return whether a name is UTF-8. Python shows other bytes as lone surrogates."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
