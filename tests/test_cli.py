from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator

import pytest
from pydantic import BaseModel

from ssl_ray.cli import base_parser, options_from, run_job, whole
from ssl_ray.errors import ConfigError, HealthError, SourceError

SECRET = "Pa55word"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Give the process of the tests its handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        options_from(base_parser("job", "What it does."), ["demo"], arguments)
    return str(error.value)


@pytest.mark.parametrize("option", ["--root", "--set", "--rerun", "--labeled", "--unlabeled", "--test", "--on", "--prices"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_argument_is_refused_by_name(option: str, value: str) -> None:
    assert f"{option} is empty" in refusal(option, value)


def test_an_empty_recipe_is_refused() -> None:
    assert "RECIPE is empty" in refusal("")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prices", f"s3://me:{SECRET}@bucket/prices.json"],
        [f"--prices=s3://me:{SECRET}@bucket/prices.json"],
        ["--scale", f"s3://me:{SECRET}@bucket"],
        ["--set", f"seed=s3://me:{SECRET}@bucket"],
        ["--set", f"unknown.path=https://h/x?X-Amz-Signature={SECRET}"],
        ["--set", f"aws_secret_access_key={SECRET}"],
        [f"s3://me:{SECRET}@bucket"],
        [f"--unknown=s3://me:{SECRET}@bucket"],
    ],
)
def test_credentials_on_a_command_line_are_refused_and_not_repeated(arguments: list[str]) -> None:
    text = refusal(*arguments)
    assert SECRET not in text
    assert "AWS_SECRET_ACCESS_KEY" in text


@pytest.mark.parametrize("arguments", [["--root", "a\udcff"], ["--set", "seed=\udc80"], ["caf\udce9"]])
def test_an_argument_that_is_not_utf8_is_refused(arguments: list[str]) -> None:
    text = refusal(*arguments)
    assert "not UTF-8" in text
    text.encode()


@pytest.mark.parametrize("arguments", [["--scale", "x"], ["--nope"], ["--heap", "1_0"], ["--plan", "x"]])
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str]) -> None:
    text = refusal(*arguments)
    assert "--help" in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["1_0", "9" * 5000, "1.5", "true", "x", "٣", "1e3"], ids=lambda text: ascii(text)[:20])
def test_whole_numbers_are_plain_digits(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        whole(text)


def test_whole_numbers() -> None:
    assert [whole("0"), whole("-5"), whole("4096")] == [0, -5, 4096]


class Typed(BaseModel):
    lr: float


def ends(main: Callable[[], None]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["job"])
        return run_job(main)


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: None, 0),
        (raising(SystemExit(0)), 0),
        (raising(SystemExit()), 0),
        (raising(SourceError("no\nimages")), 2),
        (lambda: Typed(lr="fast"), 2),  # type: ignore[arg-type]
        (raising(HealthError("one class")), 3),
        (raising(KeyboardInterrupt()), 130),
        (lambda: signal.raise_signal(signal.SIGINT), 130),
        (lambda: signal.raise_signal(signal.SIGTERM), 130),
        (raising(ZeroDivisionError("ours")), 1),
    ],
)
def test_every_end_of_a_job_has_an_exit_code(main: Callable[[], None], code: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    assert ends(main) == code


def test_an_error_is_one_short_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(raising(SourceError("no\nimages in \x1b[31m" + "x" * 5000))) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert len(text) < 200
    assert "\x1b" not in text


def test_a_traceback_of_ours_holds_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(raising(OSError(f"s3://me:{SECRET}@bucket/x"))) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert SECRET not in text


def test_a_library_that_was_interrupted_in_its_import_counts_as_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("numpy failed to import") from None

    assert ends(main) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_second_signal_leaves_the_cleaning_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[str] = []

    def clean() -> None:
        signal.raise_signal(signal.SIGINT)
        cleaned.append("locks")

    monkeypatch.setattr("ssl_ray.cli.release_all", clean)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert ends(raising(KeyboardInterrupt())) == 130
    assert cleaned == ["locks"]


class TestScale:
    """Where a job runs that nobody told."""

    @pytest.mark.parametrize(
        ("devices", "address", "settings", "workers", "reason"),
        [
            (0, None, [], 0, "one device gains nothing from Ray"),
            (1, None, [], 0, "one device gains nothing from Ray"),
            (2, None, [], 1, "this machine has 2 GPUs"),
            (0, "10.0.0.1:6379", [], 1, "on the Ray cluster that RAY_ADDRESS names"),
            (0, None, ["scale.train_workers=2"], 2, "scale.train_workers is given"),
            (0, None, ["scale.train_threads=1"], 0, "one device gains nothing from Ray"),
        ],
    )
    def test_is_chosen_by_devices_cluster_and_settings(
        self, devices: int, address: str | None, settings: list[str], workers: int, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ssl_ray.scale.device_count", lambda: devices)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address is not None:
            monkeypatch.setenv("RAY_ADDRESS", address)
        words = [word for text in settings for word in ("--set", text)]
        options, _ = options_from(base_parser("job", "What it does."), ["demo"], words)
        assert options.scale.train_workers == workers
        assert reason in options.reason

    def test_is_not_commented_on_where_it_was_given(self) -> None:
        options, _ = options_from(base_parser("job", "What it does."), ["demo"], ["--scale", "local"])
        assert (options.scale.train_workers, options.reason) == (1, "")
