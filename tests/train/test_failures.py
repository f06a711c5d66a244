"""Which failures of a training are tried again."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from ssl_ray.errors import ConfigError, SourceError, StorageError
from ssl_ray.train.failures import NotTwice


@pytest.mark.parametrize(
    ("error", "decision"),
    [
        (SourceError("an image is gone"), FailureDecision.RAISE),
        (ConfigError("a setting"), FailureDecision.RAISE),
        (StorageError("the bucket does not answer"), FailureDecision.RETRY),  # one node may be cut off
        (RuntimeError("CUDA error"), FailureDecision.RETRY),
    ],
)
def test_what_the_same_data_would_meet_again_is_not_tried_again(error: Exception, decision: FailureDecision) -> None:
    policy = NotTwice(FailureConfig(max_failures=3))
    assert policy.make_decision(WorkerGroupError("workers failed", {1: error})) == decision


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_may_pass_outranks_what_will_not_whoever_failed_first(order: tuple[int, int]) -> None:
    gone = SourceError("an image is gone")
    preempted = RayActorError(preempted=True)
    for passing in (StorageError("the bucket does not answer"), preempted):
        both = [gone, passing]
        failures = WorkerGroupError("workers failed", {rank: both[rank] for rank in order})
        assert NotTwice(FailureConfig(max_failures=3)).make_decision(failures) == FailureDecision.RETRY


def test_tries_come_to_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    policy = NotTwice(FailureConfig(max_failures=1))
    failure = WorkerGroupError("workers failed", {0: RuntimeError("again")})
    assert [policy.make_decision(failure) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    assert capsys.readouterr().out.count("starts again at its last checkpoint, since a worker failed: again") == 1
