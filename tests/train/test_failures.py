"""Errors of ours end a training; other failures are tried again."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError

from ssl_ray.errors import ConfigError, SourceError, SslRayError, StorageError
from ssl_ray.train.failures import StopOnOwnErrors

GONE = SourceError("an image is gone")


@pytest.mark.parametrize("error", [GONE, ConfigError("a setting")])
def test_an_error_of_ours_ends_the_training(error: SslRayError) -> None:
    with pytest.raises(type(error), match=str(error)):
        StopOnOwnErrors().after_exception(None, {0: RuntimeError("the connection was reset"), 1: error})


@pytest.mark.parametrize("passing", [StorageError("the bucket does not answer"), RayActorError(preempted=True)])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_may_pass_outranks_an_error_of_ours(passing: Exception, order: tuple[int, int]) -> None:
    both = [GONE, passing]
    StopOnOwnErrors().after_exception(None, {rank: both[rank] for rank in order})


def test_a_worker_that_failed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    StopOnOwnErrors().after_exception(None, {0: RuntimeError("CUDA error")})
    assert "a training worker failed: CUDA error; the training resumes" in capsys.readouterr().out
