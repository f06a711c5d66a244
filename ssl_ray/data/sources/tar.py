"""Members of a tar file, found by reading its headers. Headers are not trusted: they may claim any size and place."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

from ssl_ray.data.sources.listing import LEFTOVER, Listing, escaped, is_leftover
from ssl_ray.data.sources.walk import ODD_NAME, is_text
from ssl_ray.errors import SourceError

BUFFER = 64 * 1024
"""Bytes per read while headers are read. A server may charge per request, and one request gets several small members."""

HEADER_BYTES = 2**20
"""Largest header in bytes. Long names and PAX records take a few thousand."""

CUT_SHORT = "tar file cut short or damaged: images after that are missing"
LINK = "a link or device in a tar file"
SPARSE = "a sparse file in a tar file"

DAMAGE = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError)
"""Exceptions that `tarfile` raises on damaged headers."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "zip"}
"""First bytes of compressed files, which users may give as tar files."""


class Member(NamedTuple):
    """A file in a tar file."""

    name: str
    offset: int  # of its content in the tar file
    size: int


class _HostileHeader(tarfile.ReadError):
    """A header that no program writes, and that could make a naive reader loop forever."""


class _Headers:
    """A file for `tarfile` that limits reads and seeks, whatever size a header claims."""

    def __init__(self, stream: Any, size: int):
        self._stream, self._size = stream, size
        self.tell = stream.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= HEADER_BYTES:
            raise _HostileHeader(f"a header claims to be {count} bytes long")
        data: bytes = self._stream.read(count)
        return data

    def seek(self, offset: int) -> None:
        if offset < 0:
            raise _HostileHeader("a header claims a negative size")
        if offset > self._size:
            raise tarfile.ReadError("unexpected end of data")
        self._stream.seek(offset)


def read_members(stream: Any, path: str, size: int, part: Listing, take: Callable[[Member], None]) -> None:
    """Call `take` for every file in a tar file, in order; count links, leftovers and other members that cannot be used.

    Args:
        stream: the opened tar file; `take` may read and seek in it.
        size: bytes of the tar file.

    Raises:
        SourceError: not a tar file, a header with a negative size, or a member whose name leaves its folder.
    """
    start = stream.read(8)
    stream.seek(0)
    kind = next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None)
    if kind is not None:
        raise SourceError(f"{path} is compressed ({kind}): its members cannot be read one by one; unpack it to .tar")
    taken = False
    try:
        last = -1
        headers: Any = _Headers(stream, size)
        with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or member.offset <= last:
                    raise _HostileHeader(f"the header of {escaped(member.name)} claims a negative size")
                last = member.offset
                if (found := _file(member, path, size, part)) is not None:
                    take(found)
                    taken = True
            if not _ends(stream, tar.offset):
                _cut_short(part, path)
    except SourceError:
        raise
    except DAMAGE as error:
        if isinstance(error, _HostileHeader | RecursionError) or not taken:
            reason = "headers without a file" if isinstance(error, RecursionError) else escaped(str(error))
            raise SourceError(f"{path} cannot be read as a tar file: {reason}; take it out, or pack it again") from None
        _cut_short(part, path)


def _file(member: tarfile.TarInfo, path: str, size: int, part: Listing) -> Member | None:
    """Return a member whose bytes can be read; count any other one and return None."""
    name = member.name
    while name.startswith("./"):
        name = name[2:]
    if member.isdir():
        return None
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{path}: the member {escaped(member.name)} leaves its folder; take the file out or pack it again")
    reason = ""
    if is_leftover(name):
        reason = LEFTOVER
    elif not member.isreg():
        reason = LINK
    elif member.issparse():
        reason = SPARSE
    elif not is_text(name):
        reason = ODD_NAME
    elif member.offset_data + member.size > size:
        _cut_short(part, f"{path}/{name}")
        return None
    if reason:
        part.drop(reason, f"{path}/{name}")
        return None
    return Member(name, member.offset_data, member.size)


def _ends(stream: Any, offset: int) -> bool:
    """Return whether zeros follow the last member, as they must. `tarfile` ignores a cut or damaged header there."""
    stream.seek(offset)
    first = stream.read(512)
    if len(first) < 512 or any(first):
        return False
    while rest := stream.read(BUFFER):
        if rest.count(0) < len(rest):
            return False
    return True


def _cut_short(part: Listing, name: str) -> None:
    """Count a tar file once, because the number of missing members is unknown."""
    if not part.dropped[CUT_SHORT]:
        part.drop(CUT_SHORT, name)
