"""Images in tar files (WebDataset). Nothing is unpacked: a member is read at its offset in the tar file.

A tar file has no index, so `ingest` reads its headers once, in many files at a time. The members of a sample have the same path
up to the first dot of the file name (`dogs/0001.jpg`, `dogs/0001.cls`); the rest is the member's extension.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from ssl_ray.data.sources.limit import first
from ssl_ray.data.sources.listing import (
    GRAMMAR,
    IMAGE_SUFFIXES,
    LISTING_THREADS,
    Listing,
    escaped,
    mtime_ns,
    prefix_of,
    rows,
)
from ssl_ray.data.sources.parquet import ColumnsConfig
from ssl_ray.data.sources.patterns import matching
from ssl_ray.data.sources.tar import BUFFER, CUT_SHORT, Member, read_members
from ssl_ray.errors import SourceError
from ssl_ray.filesystems import file_info, patient, resolve

RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
MAX_FILES = 1_000_000
"""Largest number of tar files that ranges may name."""

ORDER = ("jpg", "jpeg", "png", "webp")
"""Extensions of images in order of preference, for a sample with several; others come after them."""

LABEL_BYTES = 2**20
"""Largest size in bytes of a `.cls` or `.json` member that is read for a label."""

OTHER_IMAGE = "another image of a sample"


def list_webdataset(source: str, columns: ColumnsConfig | None = None, *, labeled: bool) -> Listing:
    """List the images of `wds:path/shard-{0000..0099}.tar`, one per sample. Other members of the sample hold its class.

    Args:
        columns: `image` names extensions in order of preference (`jpg;png`). `label` names an extension (`cls`) or a field of a
            JSON member (`json.label`); by default it is `.cls`, or `json.label` in samples without it.

    Raises:
        SourceError: a file is missing, compressed, or not tar; a member's name leaves its folder; a label is missing or empty,
            or two differ; a sample has several images, and none is named after the sample alone.
    """
    columns = columns or ColumnsConfig()
    listing = Listing(source, "tar")
    patterns = expand(source.removeprefix("wds:"))
    patterns = patterns if labeled else list(first(source, patterns))
    files = [info for pattern in patterns for info in _files(pattern, listing)]
    files = files if labeled else list(first(source, files))
    prefix = prefix_of(source.removeprefix("wds:"))
    top = os.path.commonpath([os.path.dirname(info.path) for info in files]) if files else ""

    def index(info: pafs.FileInfo) -> Listing:
        return _index(prefix + info.path, info, info.path[len(top) :].lstrip("/"), source, columns, labeled)

    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for part in pool.map(index, files):
            listing.merge(part)
    if not len(listing):
        reasons = "; ".join(f"{count} {reason}" for reason, count in listing.dropped.items()) or "empty"
        rule = f"images end in {' '.join(IMAGE_SUFFIXES)}"
        if columns.image:
            rule = f"no sample has a member that images.columns.image={columns.image} names, as jpg;png would"
        raise SourceError(f"{source} holds no images ({reasons}); {rule}")
    return listing


def expand(pattern: str) -> list[str]:
    """Expand ranges: `a-{0..2}.tar` -> a-0.tar, a-1.tar, a-2.tar. The width of the numbers is kept.

    Raises:
        SourceError: a range runs backward, or ranges name more than `MAX_FILES` files.
    """
    ranges = RANGE.findall(pattern)
    if any(len(last) > 18 for _, last in ranges):
        raise SourceError(f"{pattern[:100]}: a range may name at most {MAX_FILES:,} files; correct it, or use *")
    counts = [int(last) - int(first) + 1 if len(first) <= 18 else 0 for first, last in ranges]
    if any(count < 1 for count in counts):
        raise SourceError(f"{pattern[:100]}: a range runs backward; write the smaller number first, as in {{000..099}}")
    if (total := math.prod(counts)) > MAX_FILES:
        raise SourceError(f"{pattern} names {total:,} files, more than {MAX_FILES:,}; correct the range, or use *")
    spans = [[f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] for first, last in ranges]
    pieces = RANGE.sub("\0", pattern).split("\0")
    return ["".join(itertools.chain(*zip(pieces, [*chosen, ""], strict=True))) for chosen in itertools.product(*spans)]


def _files(pattern: str, listing: Listing) -> list[pafs.FileInfo]:
    if "*" in pattern or "?" in pattern:
        return matching(pattern, listing)
    info = file_info(pattern)
    if info.type != pafs.FileType.File:
        raise SourceError(f"{pattern}: no such file; give {GRAMMAR}")
    return [info]


@dataclass
class _Sample:
    """Members that share a key."""

    members: list[tuple[str, Member]] = field(default_factory=list)  # by extension, in lower case
    contents: dict[Member, bytes] = field(default_factory=dict)  # of members that may hold a label

    def named(self, extension: str) -> list[Member]:
        return [member for name, member in self.members if name == extension]


def _index(path: str, info: pafs.FileInfo, name: str, source: str, columns: ColumnsConfig, labeled: bool) -> Listing:
    if path.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst")):
        raise SourceError(f"{path} is compressed: its members cannot be read one by one; unpack it to .tar")

    labels = LabelMember(columns.label) if labeled else None

    def read() -> tuple[dict[str, _Sample], Listing]:
        part, samples = Listing(source, "tar"), dict[str, _Sample]()
        filesystem, inside = resolve(path)
        with filesystem.open_input_file(inside) as raw:
            stream: Any = io.BufferedReader(raw, BUFFER)

            def take(member: Member) -> None:
                key = key_of(member.name)
                extension = member.name[len(key) + 1 :].lower()
                sample = samples.setdefault(key, _Sample())
                sample.members.append((extension, member))
                if labels is not None and labels.may_hold(extension) and member.size <= LABEL_BYTES:
                    stream.seek(member.offset)
                    sample.contents[member] = stream.read(member.size)

            read_members(stream, path, int(info.size), part, take)
        return samples, part

    samples, part = patient(path, read)
    found: list[tuple[Member, str | None]] = []
    last = next(reversed(samples), None) if part.dropped[CUT_SHORT] else None
    for key, sample in samples.items():
        if key == last and labels is not None and not any(labels.may_hold(extension) for extension, _ in sample.members):
            part.drop("sample without its label, where a tar file is cut short", f"{path}/{key}")
            continue
        image = _choose(key, sample, columns.image, path)
        label, used = None, list[Member]()
        if image is not None:
            if labels is not None:
                label, used = labels.read(key, sample, image, path)
            found.append((image, label))
        for extension, member in sample.members:
            if member is image or member in used:
                continue
            if image is not None and member.name == image.name:
                raise SourceError(f"{path} has two members named {escaped(image.name)}; pack it again with one of them")
            if f".{extension}".endswith(IMAGE_SUFFIXES):
                part.drop(OTHER_IMAGE, f"{path}/{member.name}")
            else:
                part.drop_kind(f"{path}/{member.name}")
    found.sort(key=lambda pair: pair[0].offset)
    count = len(found)
    part.rows.append(
        rows(
            [f"{name}/{member.name}" for member, _ in found],
            [path] * count,
            [int(info.size)] * count,
            [mtime_ns(info)] * count,
            file_row=range(count),
            offset=[member.offset for member, _ in found],
            length=[member.size for member, _ in found],
            class_name=[label for _, label in found] if labeled else None,
        )
    )
    return part


def _choose(key: str, sample: _Sample, wanted: str | None, path: str) -> Member | None:
    """Return the image of a sample, or None.

    Raises:
        SourceError: it has several images, and none is named after the sample alone (as `0001.jpg`, not `0001.seg.png`).
    """
    if wanted:
        extensions = [name.strip().lstrip(".").lower() for name in wanted.split(";")]
        return next((member for name in extensions for member in sample.named(name)), None)
    images = [(name, member) for name, member in sample.members if f".{name}".endswith(IMAGE_SUFFIXES)]
    plain = [(name, member) for name, member in images if "." not in name]
    if plain:
        return min(plain, key=lambda pair: ORDER.index(pair[0]) if pair[0] in ORDER else len(ORDER))[1]
    if len(images) > 1:
        names = [escaped(member.name) for _, member in images[:2]]
        raise SourceError(
            f"{path}: the sample {escaped(key)} has {len(images)} images ({', '.join(names)}); choose one with --set "
            f"images.columns.image={escaped(images[0][0])}; if each is a sample of its own, replace the dots before the "
            "suffixes of images and .cls: the name of a sample ends at its first dot"
        )
    return images[0][1] if images else None


class LabelMember:
    """Member that holds the class of a sample: `cls`, another extension, or `json.PATH`. `label`: `cls`, else `json.label`."""

    def __init__(self, setting: str):
        self._text, self._json, self._path = setting.lower().lstrip("."), "", list[str]()
        if setting == "label":
            self._text, self._json, self._path = "cls", "json", ["label"]
        elif named := re.fullmatch(r"((?:.*\.)?json)\.(.+)", setting, re.IGNORECASE):
            self._text, self._json, self._path = "", named[1].lower(), named[2].split(".")

    def may_hold(self, extension: str) -> bool:
        text = self._text and (extension == self._text or extension.endswith(f".{self._text}"))
        return bool(text) or extension == self._json

    def read(self, key: str, sample: _Sample, image: Member, path: str) -> tuple[str, list[Member]]:
        """Return the class of a sample, and the members that name it.

        Raises:
            SourceError: the label is missing, empty or not text, or two labels differ.
        """
        members = sample.named(self._text) or [member for name, member in sample.members if name.endswith(f".{self._text}")]
        parse: Callable[[bytes], str] = _text
        if not members or not self._text:
            members, parse = sample.named(self._json), self._field
        if not members:
            name = f"{key}.{self._text}" if self._text else f"{key}.{self._json}"
            raise SourceError(
                f"{path}: {escaped(image.name)} has no label; a labeled tar has a member {escaped(name)} beside it, or name "
                "another with --set images.columns.label=json.FIELD"
            )
        found = []
        for member in members:
            if member not in sample.contents:
                raise SourceError(
                    f"{path}: the label {member.name} takes {member.size:,} bytes; at most {LABEL_BYTES:,} are read"
                )
            try:
                found.append(parse(sample.contents[member]))
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f"{path}: the label {escaped(member.name)} {error}; correct it, or take the sample out"
                ) from None
        if len(set(found)) > 1:
            several = ", ".join(
                escaped(f"{member.name}: {label}") for member, label in list(zip(members, found, strict=True))[:2]
            )
            raise SourceError(
                f"{path}: the sample {escaped(key)} has labels that differ ({several}); the name of a sample ends at its first "
                "dot: replace the dots before the suffixes of its members"
            )
        return found[0], members

    def _field(self, content: bytes) -> str:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError("is not JSON") from None
        for name in self._path:
            if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            elif isinstance(value, dict) and name in value:
                value = value[name]
            else:
                fields = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
                raise ValueError(f"has no field {'.'.join(self._path)} ({escaped(fields)[:100]}; see images.columns.label)")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"holds {escaped(json.dumps(value))[:60]} in {'.'.join(self._path)}, not a text or a whole number")
        return _text(str(value).encode("utf-8", "surrogatepass"))


def _text(content: bytes) -> str:
    """Decode a label: one line that is not empty."""
    try:
        label = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start + 1})") from None
    if not label:
        raise ValueError("is empty")
    if any(letter < " " for letter in label):
        raise ValueError("holds several lines or a control character")
    return label


def key_of(name: str) -> str:
    """Return the name of a member's sample: its path up to the first dot of the file name."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.split('.', 1)[0]}"
