"""What a cluster can hold, and one that does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_ray import cluster
from ssl_ray.cluster import check_resources, ensure_ray
from ssl_ray.config import override
from ssl_ray.errors import ResourceError
from ssl_ray.scale import local
from tests.cluster.test_autoscaling import free_port

ROOT = Path(__file__).parents[1]


def test_one_worker_must_fit_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}]
    monkeypatch.setattr(cluster, "node_shapes", lambda: nodes)
    monkeypatch.setattr(cluster, "capacity", lambda: {"CPU": 80.0, "GPU": 2.0})
    check_resources("scale.train_workers", 2, 8.0, 1.0)
    check_resources("scale.label_actors_min", 0, 0.0, 0.0)
    with pytest.raises(ResourceError, match=r"asks for 3 GPU \(1 each\), and the cluster has 2"):
        check_resources("scale.train_workers", 3, 1.0, 1.0)
    with pytest.raises(ResourceError, match="1 CPU and 2 GPU on one node, and no node"):
        check_resources("scale.train_workers", 1, 1.0, 2.0)
    with pytest.raises(ResourceError, match="16 CPU and 1 GPU on one node"):  # each of them is there, but not together
        check_resources("scale.train_workers", 1, 16.0, 1.0)


def test_nodes_of_this_ray(ray_session: None) -> None:
    shapes = cluster.node_shapes()
    assert len(shapes) == 1
    assert shapes[0]["CPU"] == cluster.capacity()["CPU"]


def test_an_object_store_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match=r"scale\.object_store_mb=1000000000: .* of memory, and there are .*; lower it"):
        ensure_ray(override(local(), {"object_store_mb": 10**9}))


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "jobs/noisy_student.py"),
        "tiny",
        "--scale",
        "local",
        "--root",
        str(tmp_path / "root"),
    ]
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: no Ray cluster answers at 127.0.0.1:" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
