"""What can go wrong, by who can mend it.

    SslRayError
    ├── UserError            the input or a setting is at fault: one line, exit code 2
    │   ├── ConfigError      an unknown or ill-typed setting
    │   ├── SourceError      images or labels that cannot be used
    │   ├── StorageError     a root that cannot be read or written
    │   │   └── HeldError    another job is at work on it
    │   ├── DamagedError     a file that this program wrote cannot be used
    │   ├── ResourceError    more workers or devices than the cluster has
    │   └── StaleStageError  a stage was computed with other settings
    └── HealthError          a health gate stopped the run: exit code 3

Every error takes one message, so that it survives pickling on its way out of a Ray worker. A message says what is
wrong, what is allowed and what to do, and never holds credentials.
"""

from __future__ import annotations

from ssl_ray.redaction import redact


class SslRayError(Exception):
    """Base class; `exit_code` is what a job returns to the shell."""

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(redact(message) if isinstance(message, str) else message)


class UserError(SslRayError, ValueError):
    exit_code = 2


class ConfigError(UserError):
    pass


class SourceError(UserError):
    pass


class StorageError(UserError):
    pass


class HeldError(StorageError):
    pass


class DamagedError(UserError):
    pass


class ResourceError(UserError):
    pass


class StaleStageError(UserError):
    pass


class HealthError(SslRayError):
    exit_code = 3
