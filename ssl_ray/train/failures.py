"""Which failures of a training are worth another try."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from ssl_ray.cluster import own_error
from ssl_ray.errors import SslRayError, StorageError


class StopOnOwnErrors(UserCallback):
    """Ends a training at an error of ours, which the same data and settings would meet again.

    Ray Train alone would repeat the training `max_failures` times.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error of ours among those of the workers, unless another one among them may pass.

        If a node is taken away, other workers fail with it, whatever their errors say. A storage that does not answer may mean
        that a node was cut off.
        """
        errors = [own_error(failure) for failure in worker_exceptions.values()]
        if any(isinstance(error, StorageError) or getattr(error, "preempted", False) for error in errors):
            return
        for error in errors:
            if isinstance(error, SslRayError):
                raise error
        message = " ".join(str(errors[0]).split())
        print(f"a training worker failed: {message[:300]}; the training resumes from its last checkpoint", flush=True)
