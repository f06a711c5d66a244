"""Tells Ray of a spot machine that will be taken away; runs beside Ray on every worker, from cluster.yaml.

    python spot_notice.py HEAD:6379

AWS announces the end two minutes before in the machine's metadata, and Ray 2.60 does not look there. Drained, the node gets no
new work, and Ray Train tells the training, which saves a checkpoint at once. This file stands alone: it is copied to the nodes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
EVERY_S = float(os.environ.get("SPOT_NOTICE_EVERY_S", "5"))
DEADLINE_S = 60
"""Given to Ray: shorter than the two minutes, which have begun already."""


def noticed() -> bool:
    """Whether the machine has been told that it will end. 404: not so."""
    try:
        ask = urllib.request.Request(
            f"{METADATA}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        with urllib.request.urlopen(ask, timeout=2) as answer:
            token = answer.read().decode()
        ask = urllib.request.Request(
            f"{METADATA}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(ask, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def drain(address: str, node_id: str | None = None) -> bool:
    """Tell the cluster at `address` (host:port) that a node will be taken away, with the command `ray drain-node`.

    Args:
        node_id: hex id of the node; None: the node of this machine.

    Returns:
        Whether the cluster agreed.
    """
    command = [
        os.path.join(os.path.dirname(sys.executable), "ray"),
        "drain-node",
        *("--address", address),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", "the spot machine is taken away"),
        *("--deadline-remaining-seconds", str(DEADLINE_S)),
        *(() if node_id is None else ("--node-id", node_id)),
    ]
    done = subprocess.run(
        command, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    if done.returncode:
        print(f"cannot reach the cluster: {done.stderr.strip()[-300:]}", flush=True)
    return done.returncode == 0


def main() -> None:
    address = sys.argv[1]
    while not noticed():
        time.sleep(EVERY_S)
    end = time.time() + DEADLINE_S
    while time.time() < end:
        if drain(address):
            print(f"told the cluster at {address} that this machine will be taken away", flush=True)
            return
        time.sleep(1)  # the head may be busy for a moment


if __name__ == "__main__":
    main()
