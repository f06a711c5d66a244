"""Credentials in text: messages mask them, and settings that hold some are refused."""

from __future__ import annotations

import os
import re

MASK = "***"

_KEYS = "access[_-]?key|api[_-]?key|account[_-]?key"
_NAME = rf"[\w.-]*(?:secret|passwo?r?d|token|signature|credential|{_KEYS})[\w.-]*|sig|authorization"
_PATTERNS = (
    # User and password of a URL. A secret may hold slashes, so everything after a colon that does not start a port is masked,
    # up to the last @.
    (re.compile(r"://[^/\s'\":@\[]*:(?!\d{1,5}(?:[/?\s'\",;)]|$))[^\s'\"]+@"), f"://{MASK}@"),
    (re.compile(r"://[^/\s'\"@]*@"), f"://{MASK}@"),
    (re.compile(r"://[^/\s'\":@\[]*:(?!\d{1,5}(?:[/?\s'\",;)]|$))[^\s'\"]+"), f"://{MASK}"),
    # NAME=value, also in the query of a URL, and "name": "value".
    (
        re.compile(rf"(?i)(?<![\w.-])((?:{_NAME})['\"]?\s*=\s*|(['\"])(?:{_NAME})\2\s*:\s*)(['\"]?)[^\s'\"&,;}}]+"),
        rf"\1\3{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), MASK),
)
_URL = re.compile(r"://[^\s'\"]+")
_OPTION = re.compile(r"([?&][\w.%-]+=)[^&\s'\"#]+")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|API_KEY")
LONG = 16
"""Characters from which the value of an environment variable is masked; shorter ones may be words, such as `minioadmin`."""


def redact(text: str) -> str:
    """Mask all credentials in a message.

    Credentials are users, passwords and query options in URLs, values after names such as `aws_secret_access_key`, and the
    values of environment variables with such names.
    """
    for name, value in os.environ.items():
        if len(value) >= LONG and _SECRET_VARIABLE.search(name.upper()):
            text = text.replace(value, MASK)
    return _masked(text)


def carries_secrets(text: str) -> bool:
    """Return whether a setting or path holds credentials, or a URL with query options, which may be credentials."""
    return _masked(text) != text


def _masked(text: str) -> str:
    text = _URL.sub(lambda url: _OPTION.sub(rf"\1{MASK}", url.group()), text)
    for pattern, mask in _PATTERNS:
        text = pattern.sub(mask, text)
    return text
