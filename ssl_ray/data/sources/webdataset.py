"""Images in tar files. Nothing is unpacked: a member is found by where its bytes stand, and read from there.

A tar has no index, so `ingest` reads its headers once, many files at a time.
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.fs as pafs

from ssl_ray.data.sources.limit import first
from ssl_ray.data.sources.listing import (
    GRAMMAR,
    IMAGE_SUFFIXES,
    LISTING_THREADS,
    Listing,
    mtime_ns,
    prefix_of,
    rows,
)
from ssl_ray.data.sources.parquet import matching
from ssl_ray.errors import SourceError
from ssl_ray.storage import file_info, patient, resolve

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
BUFFER = 64 * 1024
"""Bytes of a read while headers are looked for: of a server that charges for requests, one brings several small members."""


def list_webdataset(source: str, *, labeled: bool) -> Listing:
    """`wds:path/shard-{0000..0099}.tar`, or with `*`. Classes come from `.cls` members beside the images.

    Raises:
        SourceError: a file is missing, compressed, or no tar; a member's name leaves its folder; a label is missing.
    """
    listing = Listing(source, "tar")
    patterns = expand(source.removeprefix("wds:"))
    patterns = patterns if labeled else list(first(source, patterns))
    files = [info for pattern in patterns for info in _files(pattern)]
    files = files if labeled else list(first(source, files))
    prefix = prefix_of(source.removeprefix("wds:"))
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for part in pool.map(lambda info: _index(prefix + info.path, info, source, labeled), files):
            listing.merge(part)
    if not len(listing):
        reasons = ", ".join(f"{count} {reason}" for reason, count in listing.dropped.items()) or "empty"
        raise SourceError(f"{source} holds no images ({reasons}); images end in {' '.join(IMAGE_SUFFIXES)}")
    return listing


def expand(pattern: str) -> list[str]:
    """`a-{0..2}.tar` -> a-0.tar, a-1.tar, a-2.tar; widths are kept."""
    spans = [
        [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] for first, last in RANGE.findall(pattern)
    ]
    pieces = RANGE.sub("\0", pattern).split("\0")
    return [
        "".join(itertools.chain(*zip(pieces, [*chosen, ""], strict=True))) for chosen in itertools.product(*spans)
    ]  # a pattern without a range is itself


def _files(pattern: str) -> list[pafs.FileInfo]:
    if "*" in pattern or "?" in pattern:
        return matching(pattern)
    info = file_info(pattern)
    if info.type != pafs.FileType.File:
        raise SourceError(f"{pattern}: no such file; give {GRAMMAR}")
    return [info]


def _index(path: str, info: pafs.FileInfo, source: str, labeled: bool) -> Listing:
    if path.endswith((".gz", ".bz2", ".xz", ".zst")):
        raise SourceError(f"{path} is compressed: its members cannot be read one by one; unpack it to .tar")
    return patient(path, lambda: _members(path, info, source, labeled))


def _members(path: str, info: pafs.FileInfo, source: str, labeled: bool) -> Listing:
    part = Listing(source, "tar")
    filesystem, inside = resolve(path)
    found: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    with filesystem.open_input_file(inside) as raw:
        stream: Any = io.BufferedReader(raw, BUFFER)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    _consider(member, tar, path, int(info.size), part, found, labels)
                if not _ends(stream, tar.offset):
                    _cut_short(part, path)
        except tarfile.ReadError as error:
            if not found:
                raise SourceError(f"{path} cannot be read as a tar file: {error}; take it out, or unpack it") from None
            _cut_short(part, path)
        except EOFError:
            _cut_short(part, path)
    name = info.base_name
    classes: list[str | None] | None = None
    if labeled:
        classes = [labels.get(key_of(member)) for member, _, _ in found]
        if None in classes:
            lacking = found[classes.index(None)][0]
            raise SourceError(f"{path}: {lacking} has no label; a labeled tar has a member {key_of(lacking)}.cls beside it")
    count = len(found)
    part.rows.append(
        rows(
            [f"{name}/{member}" for member, _, _ in found],
            [path] * count,
            [int(info.size)] * count,
            [mtime_ns(info)] * count,
            file_row=range(count),
            offset=[offset for _, offset, _ in found],
            length=[length for _, _, length in found],
            class_name=classes,
        )
    )
    return part


def _consider(
    member: tarfile.TarInfo,
    tar: tarfile.TarFile,
    path: str,
    size: int,
    part: Listing,
    found: list[tuple[str, int, int]],
    labels: dict[str, str],
) -> None:
    name = member.name.removeprefix("./")
    if member.isdir():
        return
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{path}: the member {member.name!r} leaves its folder; take the file out or pack it again")
    if not member.isreg():
        part.drop("a link or device in a tar file", f"{path}/{name}")
    elif member.offset_data + member.size > size:
        _cut_short(part, f"{path}/{name}")
    elif name.lower().endswith(".cls"):
        content = tar.extractfile(member)
        labels[key_of(name)] = content.read().decode(errors="replace").strip() if content else ""
    elif name.lower().endswith(IMAGE_SUFFIXES):
        found.append((name, member.offset_data, member.size))
    else:
        part.drop("not an image by its suffix", f"{path}/{name}")


def _ends(stream: Any, offset: int) -> bool:
    """Whether a tar file ends where its last member does: in zeros. tarfile passes over a header that is cut or damaged."""
    stream.seek(offset)
    first = stream.read(512)
    if len(first) < 512 or any(first):
        return False
    while rest := stream.read(BUFFER):
        if any(rest):
            return False
    return True


def _cut_short(part: Listing, name: str) -> None:
    """Once a file: how many members are missing, nobody can tell."""
    reason = "tar file cut short or damaged: images after that are missing"
    if not part.dropped[reason]:
        part.drop(reason, name)


def key_of(name: str) -> str:
    """What the members of one sample share: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.split('.', 1)[0]}"
