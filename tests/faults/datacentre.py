"""Hosts of their own on one machine: network namespaces, joined by a bridge, without a common disk.

    python -m tests.faults.datacentre PROGRAM [WORD]...

re-executes itself inside namespaces and calls `PROGRAM` there; nothing is left when it ends, even by `kill -9`. A bridge and an S3
server lie in the outer namespace; every host has its own network, processes, name, `/tmp` and `/dev/shm`, and may write nowhere
else. Needs root, or the right to make user namespaces, and iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
PYTHON, BIN = sys.executable, Path(sys.executable).parent
SPACES = ["unshare", "-n", "-m", "-p", "-u", "-i", "--fork", "--kill-child", "--mount-proc"]
PROBE = "ip link add br0 type bridge && ip link add a0 type veth peer name a1 && mount -t tmpfs t /mnt"
NET = "10.77.0."
Found = TypeVar("Found")


def spaces() -> list[str] | None:
    """The command that makes namespaces, or None where this user may not."""
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip")):
        return None
    for words in (SPACES, [SPACES[0], "-Ur", *SPACES[1:]]):
        if subprocess.run([*words, "sh", "-ec", PROBE], capture_output=True, check=False).returncode == 0:
            return words
    return None


ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USE_DATASOURCE_V2": "0",
    # A host that falls silent is noticed in seconds: by default its tasks would be waited for.
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3", "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "3000",
    "RAY_agent_register_timeout_ms": "120000", "RAY_raylet_start_wait_time_s": "90",
    "GLOO_SOCKET_IFNAME": "eth0", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1",
    "AWS_ENDPOINT_URL": f"http://{NET}254:8333", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


def until(what: str, found: Callable[[], Found], seconds: float = 90) -> Found:
    """Wait for something that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except Exception:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")


def shell(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


class Host:
    """One host: an address, a cable that can be cut, and a power switch."""

    def __init__(self, number: int, place: Path):
        self.number, self.address, self.cable = number, f"{NET}{number}", f"veth{number}"
        own = place / f"host{number}"
        (own / "etc").mkdir(parents=True, exist_ok=True)
        (own / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} host{number}\n")
        (own / "etc/resolv.conf").write_text("")
        # Each host has a /tmp of its own; a checkout or an environment that lies in the real one must be seen there, too.
        hidden = [path for path in (ROOT, Path(sys.prefix).resolve()) if path.is_relative_to("/tmp")]
        shown = "".join(
            f"mkdir -p /mnt/{path.relative_to('/tmp')}; mount --bind {path} /mnt/{path.relative_to('/tmp')};" for path in hidden
        )
        setup = (
            f"hostname host{number}; ip link set lo up; mount --bind {own} /mnt; {shown}"
            "for d in /dev/shm /var/tmp /run; do mount -t tmpfs -o size=2g t $d; done;"
            "mount --bind /mnt/etc/hosts /etc/hosts; mount --bind /mnt/etc/resolv.conf /etc/resolv.conf || true;"
            "mount --rbind /mnt /tmp; mount -o remount,bind,ro /; trap '' CHLD; echo up; exec sleep infinity"
        )
        self._init = subprocess.Popen([*SPACES, "sh", "-c", setup], stdout=subprocess.PIPE)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"up\n"
        pid = self._init.pid
        self.pid = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        shell(f"ip link del {self.cable} 2>/dev/null || true")
        shell(f"ip link add {self.cable} type veth peer name eth0 netns {self.pid} && ip link set {self.cable} master br0 up")
        inside = f"ip addr add {self.address}/24 dev eth0 && ip link set eth0 up && ip route add default via {NET}254"
        shell(f"nsenter -t {self.pid} -n sh -ec '{inside}'")
        self._log = own / "log"

    def run(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process on this host."""
        words = ["nsenter", "-t", self.pid, "-n", "-m", "-p", "-u", "-i", "--wd=/tmp", *command]
        with open(self._log, "ab") as log:
            return subprocess.Popen(words, env=os.environ | ENVIRONMENT | environment, stdout=log, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def ray(self, *words: str) -> None:
        self.run(
            str(BIN / "ray"), "start", f"--node-ip-address={self.address}", "--temp-dir=/tmp/ray", "--disable-usage-stats",
            "--object-store-memory=150000000", "--block", *words,
        )  # fmt: skip

    def cut(self) -> None:
        """Its cable: nobody is told, and nothing comes back."""
        shell(f"ip link set {self.cable} down")

    def kill(self) -> None:
        self._init.kill()
        self._init.wait()


class DataCentre:
    """A switch, an S3 server with one bucket, and a head with workers."""

    def __init__(self, place: Path, workers: int = 2):
        self.place = place
        shell(f"ip link set lo up; ip link add br0 type bridge; ip addr add {NET}254/24 dev br0; ip link set br0 up")
        identity = {"name": "t", "credentials": [{"accessKey": "k", "secretKey": "s"}]}
        rights = {"actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (place / "s3").mkdir()
        (place / "s3.json").write_text(json.dumps({"identities": [identity | rights]}))
        os.environ.update(ENVIRONMENT)
        with open(place / "s3.log", "wb") as log:
            subprocess.Popen(
                [str(BIN / "weed"), "server", f"-ip={NET}254", "-ip.bind=0.0.0.0", f"-dir={place}/s3", "-filer", "-s3",
                 "-s3.port=8333", f"-s3.config={place}/s3.json", "-volume.max=20", "-master.volumeSizeLimitMB=64",
                 "-s3.port.iceberg=0", "-s3.port.lance=0"],
                stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": str(place)},
            )  # fmt: skip
        self.head = Host(1, place)
        self.head.ray("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=true")
        self.workers = [Host(number, place) for number in range(2, 2 + workers)]
        import boto3

        self.s3: Any = boto3.client("s3")
        until("the S3 server", lambda: self.s3.create_bucket(Bucket="bucket"))
        until("a first object", lambda: self.s3.put_object(Bucket="bucket", Key="first", Body=b"x"))
        for host in self.workers:  # one after the other: on two cores their agents would wait for each other too long
            self.join(host)

    def join(self, host: Host) -> None:
        host.ray(f"--address={self.head.address}:6379", "--num-cpus=4")
        until(f"host {host.number}", lambda: "Ray runtime started" in host.said(), 120)

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
        return [item["Key"] for item in found]

    def job(self, *words: str) -> subprocess.Popen[bytes]:
        """A job on the head, as a user runs it there."""
        return self.head.run(PYTHON, "-u", *words, RAY_ADDRESS=f"{self.head.address}:6379", PYTHONPATH=str(ROOT))


def enter(module: str, words: list[str]) -> int:
    """Run `python -m MODULE inside WORDS` in an outer namespace; its exit code."""
    made = spaces()
    assert made is not None
    with tempfile.TemporaryDirectory(prefix="dc-", dir="/var/tmp") as place:
        command = [*made, PYTHON, "-u", "-m", module, "inside", place, *words]
        return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode
