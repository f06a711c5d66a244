"""Checks of paths and names as text, and their form in messages."""

from __future__ import annotations

import os
import re

from ssl_ray.errors import StorageError

LONGEST = 4095
"""Largest number of bytes in a local path."""


def is_local(path: str) -> bool:
    """Return whether a path is local, that is, has no scheme such as `s3://`."""
    return "://" not in path


def local_path(path: str) -> str:
    """Make a local path absolute. If the part before `..` is a link, `..` means the parent of its target."""
    path = os.path.expanduser(path)
    if (length := len(path.encode())) > LONGEST:
        raise StorageError(f"{path[:60]}...: a path of {length:,} bytes is longer than {LONGEST:,}; choose a shorter one")
    parts = path.split(os.sep)
    try:
        if ".." in parts:
            behind = len(parts) - parts[::-1].index("..")
            path = os.path.join(os.path.realpath(os.sep.join(parts[:behind])), *parts[behind:])
        return os.path.abspath(path)
    except OSError as error:
        raise StorageError(f"{path}: the current folder cannot be used ({error.strerror}); change to another one") from None


def problem_of(path: str) -> str:
    """Say in one line why a path, or a source with paths in it, cannot be used; return "" if it can."""
    if not path.strip():
        return "a path is empty; give a local path or s3://bucket/prefix"
    if "\0" in path or (not path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in path)):
        return f"{escaped(path)}: the path is not UTF-8, or holds a zero byte; rename the folder"
    for scheme in re.findall(r"([^:@]*)://", path):
        if scheme not in ("s3", "wds", "coco", "voc", "sample"):
            advice = "leave file:// out" if scheme == "file" else "use a local path or s3://bucket/prefix"
            return f"{path}: {scheme}:// cannot be read; {advice}"
    if re.search(r"(^|[:@])(s3|gs|https?|file):/[^/]", path, re.IGNORECASE):
        return f"{path}: the path of a server has two slashes; write s3://bucket/prefix"
    return ""


def escaped(name: str) -> str:
    """Return a name for messages and records: invalid bytes and control characters become escapes like `\\xe9`."""

    def escape(letter: str) -> str:
        # Python stands for a byte that is not UTF-8 with one of these code points.
        return f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else ascii(letter)[1:-1]

    return name if name.isprintable() else "".join(letter if letter.isprintable() else escape(letter) for letter in name)
