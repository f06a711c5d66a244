"""The cluster files: against Ray's schema, against a stand-in for AWS, against KubeRay's published fields."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return found


def problems(config: dict[str, Any]) -> list[str]:
    """What Ray's schema says, and what it lets through."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = []
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:
        found.append(str(error).splitlines()[0])
    for name, kind in config["available_node_types"].items():
        low, high = kind.get("min_workers", 0), kind.get("max_workers", 0)
        if not 0 <= low <= max(high, 0):
            found.append(f"{name}: {low} to {high} workers")
    return found


def test_the_cluster_file_fits_rays_schema() -> None:
    config = cluster()
    assert problems(config) == []
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    assert kinds["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert kinds["gpu"]["min_workers"] == kinds["cpu"]["min_workers"] == 0
    for name, kind in kinds.items():
        assert kind["node_config"]["ImageId"].startswith("ami-")
        assert ("IamInstanceProfile" in kind["node_config"]) == (name != "head")  # Ray makes the head's
    for source in config["file_mounts"].values():
        assert (ROOT / source).exists()
    started = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert started.count("RAY_USAGE_STATS_ENABLED=0") == 2
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in started


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(idle_minutes=3),
        lambda c: c["available_node_types"]["gpu"].update(spot=True),
        lambda c: c["available_node_types"]["gpu"].update(min_workers=9),
        lambda c: c["available_node_types"]["gpu"].update(min_workers=-1),
        lambda c: c.update(head_node_type="boss"),
    ],
)
def test_the_check_would_notice(spoil: Callable[[dict[str, Any]], None]) -> None:
    config = cluster()
    spoil(config)
    assert problems(config)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """A stand-in for AWS on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    environment = os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def launch(endpoint: str, home: Path, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Ray keeps its clients of AWS for good."""
    (home / ".ssh").mkdir(parents=True, exist_ok=True)
    (home / "cluster.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1",
        "HOME": str(home),
    }  # fmt: skip
    command = [sys.executable, str(HERE / "launch.py"), str(home / "cluster.yaml")]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_aws_would_launch_it(moto: str, tmp_path: Path) -> None:
    done = launch(moto, tmp_path, cluster())
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["resources"]["gpu"]["GPU"] == 1  # found out from the machine
    assert found["resources"]["cpu"]["CPU"] == 16
    assert sorted(map(tuple, found["instances"])) == [
        ("g5.2xlarge", "spot"), ("m6i.4xlarge", "spot"), ("m6i.xlarge", "on demand"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda node: node.update(InstanceMarketOption={"MarketType": "spot"}), "InstanceMarketOption"),
        (lambda node: node.update(InstanceType="g5.2xlarg"), "g5.2xlarg"),
    ],
)
def test_aws_would_refuse_what_the_schema_lets_through(
    spoil: Callable[[dict[str, Any]], None], said: str, moto: str, tmp_path: Path
) -> None:
    config = cluster()
    spoil(config["available_node_types"]["gpu"]["node_config"])
    assert problems(config) == []
    done = launch(moto, tmp_path, config)
    assert done.returncode != 0
    assert said in done.stderr + done.stdout


MANIFESTS = {"cluster.yaml": "raycluster_fields.json", "job.yaml": "rayjob_fields.json"}


def kuberay(name: str) -> tuple[dict[str, Any], jsonschema.Draft202012Validator]:
    fields = json.loads((HERE / MANIFESTS[name]).read_text())
    return yaml.safe_load((ROOT / "docs/kuberay" / name).read_text()), jsonschema.Draft202012Validator(fields)


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_knows_every_field(name: str) -> None:
    manifest, check = kuberay(name)
    assert [error.message for error in check.iter_errors(manifest)] == []
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert 0 == group["minReplicas"] <= group["maxReplicas"]  # the operator's own rule
        pod = group["template"]["spec"]
        drained = next(
            (
                int(item["value"])
                for item in pod["containers"][0]["env"]
                if item["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
            ),
        )
        assert drained < pod["terminationGracePeriodSeconds"]
    gpu = next(group for group in spec["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_kuberay_would_refuse_a_misspelt_field() -> None:
    manifest, check = kuberay("cluster.yaml")
    manifest["spec"]["workerGroupSpecs"][0]["minReplica"] = 0
    assert not check.is_valid(manifest)
    manifest, check = kuberay("cluster.yaml")
    manifest["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # must be a string
    assert not check.is_valid(manifest)


def test_versions_agree() -> None:
    import ray

    assert ray.__version__ in (ROOT / "docs/kuberay/cluster.yaml").read_text()
    assert ray.__version__ in (ROOT / "docs/kuberay/Dockerfile").read_text()
    assert f"ray=={ray.__version__}" in (ROOT / "requirements.lock").read_text()
