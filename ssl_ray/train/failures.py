"""Which failures of a training are worth another try."""

from __future__ import annotations

from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2.api.exceptions import TrainingFailedError

from ssl_ray.cluster import own_error
from ssl_ray.errors import SslRayError, StorageError


class NotTwice(DefaultFailurePolicy):
    """Ray's policy, but for errors of ours that the same data and settings would meet again.

    A node that goes takes the other workers along, whatever they say then; and a storage that does not answer may be a node
    that was cut off. Both are tried again, whoever failed beside.
    """

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", None) or {0: training_failed_error}
        errors = [own_error(failure) for failure in failures.values()]
        passing = any(isinstance(error, StorageError) for error in errors) or _is_preemption_failure(training_failed_error)
        if not passing and any(isinstance(error, SslRayError) for error in errors):
            return FailureDecision.RAISE
        decision: FailureDecision = super().make_decision(training_failed_error)
        if decision == FailureDecision.RETRY:  # on a laptop Ray says nothing of it
            said = " ".join(str(errors[0]).split())
            print(f"the training starts again at its last checkpoint, since a worker failed: {said[:300]}", flush=True)
        return decision
