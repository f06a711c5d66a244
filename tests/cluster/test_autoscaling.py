"""Ray's own autoscaler with its fake nodes on this machine: from zero under load, and back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ssl_ray.cluster import ENVIRONMENT
from tests.faults.harness import write_corpus, write_teacher

ROOT = Path(__file__).parents[2]
NODES = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Growing:
    """A head whose autoscaler starts raylets on this machine. (`AutoscalingCluster` of Ray stops every Ray of the host.)"""

    def __init__(self, place: Path):
        self.port = free_port()
        self.place = place
        config = {
            "cluster_name": "fake", "max_workers": NODES, "head_node_type": "ray.head.default", "auth": {}, "upscaling_speed": 10,
            "idle_timeout_minutes": 0.2, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
            **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                                   "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
                                   "rsync_filter")},
            "provider": {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
                         "disable_launch_config_check": True, "gcs_address": f"127.0.0.1:{self.port}", "launch_multiple": True,
                         "head_node_id": "f" * 51 + "00000"},
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "cpu": {"resources": {"CPU": 2, "object_store_memory": 150_000_000}, "node_config": {}, "min_workers": 0,
                        "max_workers": NODES},
            },
        }  # fmt: skip
        (place / "fake.yaml").write_text(yaml.safe_dump(config))
        environment = os.environ | ENVIRONMENT | {
            "RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "0",  # its wheel lacks a file that v2 looks for with this provider
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "00000",
        }  # fmt: skip
        environment.pop("RAY_ADDRESS", None)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={self.port}", "--num-cpus=0",
                   "--node-ip-address=127.0.0.1", f"--temp-dir={place}/ray", "--object-store-memory=150000000",
                   f"--autoscaling-config={place}/fake.yaml", "--disable-usage-stats", f"--dashboard-port={free_port()}",
                   f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={20000 + self.port % 9000}"]  # fmt: skip
        with open(place / "start.log", "w") as log:  # no pipe: what it starts would hold it open
            started = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=120, check=False)
        assert started.returncode == 0, (place / "start.log").read_text()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def nodes(self) -> int:
        """Living nodes beside the head."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        found = GcsClient(address=self.address).get_all_node_info()
        return sum(node.state == 0 for node in found.values()) - 1

    def stop(self) -> None:
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                if str(self.place).encode() in Path(f"/proc/{entry}/cmdline").read_bytes() and int(entry) != os.getpid():
                    os.kill(int(entry), signal.SIGKILL)


@pytest.fixture
def growing() -> Iterator[Growing]:
    place = Path(tempfile.mkdtemp(prefix="as-", dir="/tmp"))  # sockets want a short path
    made = None
    try:
        made = Growing(place)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(place, ignore_errors=True)


class Watch:
    """The number of workers, all the time."""

    def __init__(self, cluster: Growing):
        self.cluster, self.seen, self._stop = cluster, [cluster.nodes()], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            now = self.cluster.nodes()
            if now != self.seen[-1]:
                self.seen.append(now)

    def until(self, count: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.seen[-1] != count:
            assert time.monotonic() < end, self.seen
            time.sleep(0.2)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def job(cluster: Growing, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_nodes_come_from_zero_for_labels_and_for_a_student_and_go_again(growing: Growing, tmp_path: Path) -> None:
    images, teacher = write_corpus(tmp_path / "images", 2000), write_teacher(tmp_path / "teacher")
    watch = Watch(growing)
    assert watch.seen == [0]
    settings = {
        "labeler.quarantine_budget": 0.05, "scale.label_actors_min": 2, "scale.label_actors_max": 2, "scale.label_cpus": 1.5,
        "scale.label_rows_per_file": 100, "scale.label_threads": 1, "scale.autoscaling": "true",
    }  # fmt: skip
    words = [word for pair in settings.items() for word in ("--set", f"{pair[0]}={pair[1]}")]
    done = job(growing, "jobs/label.py", "--teacher", teacher, "--images", images, "--root", str(tmp_path / "labels"), *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "labels/labels/_record.json").read_text())
    assert record["results"]["images"] == 1980
    assert NODES in watch.seen, watch.seen  # an actor does not fit beside another one
    watch.until(0, 120)
    print("workers by time:", watch.seen)

    # A student that asks for two workers starts when its nodes are there.
    settings = {"scale.train_workers": 2, "scale.train_cpus": 1.5, "scale.train_threads": 1, "scale.autoscaling": "true",
                "scale.label_actors_max": 0, "scale.start_timeout_s": 120, "teacher.schedule.length": 10}  # fmt: skip
    words = [word for pair in settings.items() for word in ("--set", f"{pair[0]}={pair[1]}")]
    watch.seen = [0]
    done = job(growing, "-m", "tests.cluster.train_one", str(tmp_path / "student"), *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "student/teacher/_record.json").read_text())
    assert record["results"]["workers"] == 2
    assert NODES in watch.seen, watch.seen
    watch.until(0, 120)
    print("workers by time:", watch.seen)
    watch.stop()
