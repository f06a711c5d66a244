"""Tells Ray of a spot machine that will be taken away; runs beside Ray on every worker, from cluster.yaml.

    python spot_notice.py HEAD:6379

AWS announces the end two minutes before in the machine's metadata, and Ray 2.60 does not look there. Drained, the node gets no
new work, and Ray Train tells the training, which saves a checkpoint at once. This file stands alone: it is copied to the nodes.
"""

from __future__ import annotations

import os
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


def drain(address: str, node_id: str) -> bool:
    """Tell the cluster at `address` (host:port) that this node will be taken away; whether it agreed."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + DEADLINE_S) * 1000)
    accepted, _ = GcsClient(address=address).drain_node(node_id, reason, "spot machine is taken away", deadline_ms)
    return bool(accepted)


def own_node(address: str) -> str:
    """Hex id of the node of this machine.

    Raises:
        LookupError: the cluster knows no living node with an address of ours.
    """
    from ray._private.services import get_node_ip_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    mine = get_node_ip_address(address)
    for node_id, node in GcsClient(address=address).get_all_node_info().items():
        if node.node_manager_address == mine and node.state == 0:
            return str(node_id.hex())
    raise LookupError(f"no living node with the address {mine}")


def main() -> None:
    address = sys.argv[1]
    while not noticed():
        time.sleep(EVERY_S)
    end = time.time() + DEADLINE_S
    while time.time() < end:
        try:
            accepted = drain(address, own_node(address))
        except Exception as error:  # the head may be busy for a moment, and this is the last thing that this machine has to say
            print(f"cannot reach the cluster: {error}", flush=True)
            time.sleep(1)
            continue
        print(f"told the cluster at {address}; it {'agreed' if accepted else 'did not agree'}", flush=True)
        return


if __name__ == "__main__":
    main()
