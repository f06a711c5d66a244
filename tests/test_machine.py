from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ssl_ray import machine
from ssl_ray.cluster import cores_for
from ssl_ray.config import override
from ssl_ray.errors import ConfigError, ResourceError
from ssl_ray.machine import check_memory, cpu_quota, usable_cores, usable_memory, use_threads
from ssl_ray.scale import device_for, inline, local
from ssl_ray.stage import Run

V2 = {"proc/self/cgroup": "0::/slot/job"}
V1 = {"proc/self/cgroup": "4:cpu,cpuacct:/slot\n3:memory:/slot\n1:name=systemd:/slot"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    return tmp_path


def write(host: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        (V2 | {"sys/fs/cgroup/slot/job/cpu.max": "max 100000"}, 16),
        (V2 | {"sys/fs/cgroup/slot/job/cpu.max": "200000 100000"}, 2),
        (V2 | {"sys/fs/cgroup/slot/cpu.max": "150000 100000"}, 2),
        (V2 | {"sys/fs/cgroup/slot/job/cpu.max": "50000 100000"}, 1),
        (V2 | {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        (V1 | {"sys/fs/cgroup/cpu/slot/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/slot/cpu.cfs_period_us": "100000"}, 16),
        (V1 | {"sys/fs/cgroup/cpu/slot/cpu.cfs_quota_us": "400000", "sys/fs/cgroup/cpu/slot/cpu.cfs_period_us": "100000"}, 4),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        (V2 | {"sys/fs/cgroup/slot/job/cpu.max": "6400000 100000"}, 16),
        (V2 | {"sys/fs/cgroup/slot/job/cpu.max": "no numbers"}, 16),
    ],
)
def test_cores_follow_the_quota_of_a_cgroup(host: Path, files: dict[str, str], cores: int) -> None:
    write(host, files)
    assert usable_cores() == cores


def test_cores_follow_the_affinity(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert usable_cores() == cores_for(1, 0) == 2
    assert local().logical_cpus == 4


def test_a_local_scale_follows_the_quota(host: Path) -> None:
    write(host, V2 | {"sys/fs/cgroup/slot/job/cpu.max": "700000 100000"})
    assert (local().logical_cpus, cpu_quota()) == (7, 7.0)


@pytest.mark.parametrize(
    "files",
    [
        V2 | {"sys/fs/cgroup/slot/job/memory.max": "1048576", "sys/fs/cgroup/slot/memory.max": "max"},
        V1 | {"sys/fs/cgroup/memory/slot/memory.limit_in_bytes": "1048576"},
    ],
)
def test_memory_follows_the_limit_of_a_cgroup(host: Path, files: dict[str, str]) -> None:
    write(host, files)
    assert usable_memory() == 2**20


def test_threads_are_bounded_by_the_cores(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(host, V2 | {"sys/fs/cgroup/cpu.max": "100000 100000"})
    before = torch.get_num_threads()
    try:
        assert use_threads(100_000, "scale.train_threads") == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert "scale.train_threads=100000" in capsys.readouterr().out


def test_threads_of_decoding_are_bounded() -> None:
    with pytest.raises(ConfigError, match=r"decode_threads.*1024"):
        override(local(), {"decode_threads": 100_000})


def test_an_allocation_that_does_not_fit_names_size_limit_and_setting() -> None:
    with pytest.raises(ResourceError, match=r"a batch of 9 images: 2\.0 GiB of memory, and there are 1\.0 GiB; lower batch"):
        check_memory("a batch of 9 images", 2**31, "lower batch", limit=2**30)


@pytest.mark.parametrize("needed", [float("inf"), float("nan"), 10**400])
def test_sizes_beyond_numbers_do_not_fit(needed: float) -> None:
    with pytest.raises(ResourceError, match="of memory"):
        check_memory("a net", needed, "lower net.width")


def test_no_gpu_is_one_line_before_any_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_ray.scale.device_count", lambda: 0)
    for setting, scale in (("train_gpus", inline()), ("label_gpus", inline())):
        with pytest.raises(ResourceError, match=rf"scale\.{setting}=1 asks for a GPU.*set scale\.{setting}=0"):
            Run(str(tmp_path / "root"), override(scale, {setting: 1}), echo=lambda line: None)
    assert not (tmp_path / "root").exists()
    assert Run(str(tmp_path / "root"), override(local(), {"train_gpus": 1}), plan=True).plan, "Ray knows its nodes' GPUs"


def test_a_gpu_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_ray.scale.device_count", lambda: 1)
    assert (device_for(0.5, "scale.train_gpus"), device_for(0, "scale.train_gpus")) == ("cuda", "cpu")
