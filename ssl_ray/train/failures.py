"""Which failures of a training are worth another try."""

from __future__ import annotations

from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError

from ssl_ray.cluster import own_error
from ssl_ray.errors import SslRayError, StorageError


class NotTwice(DefaultFailurePolicy):
    """Ray's policy, but for errors of ours that the same data and settings would meet again. A storage that does not answer is
    none of them: it may be the one node that was cut off."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        ours = own_error(training_failed_error)
        if isinstance(ours, SslRayError) and not isinstance(ours, StorageError):
            return FailureDecision.RAISE
        decision: FailureDecision = super().make_decision(training_failed_error)
        return decision
