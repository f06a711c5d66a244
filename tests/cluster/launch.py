"""Launches the kinds of a cluster file, as `ray up` and the autoscaler would; run with AWS_ENDPOINT_URL set to a stand-in."""

from __future__ import annotations

import copy
import json
import sys

import boto3
import yaml
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

PROFILE = "workers"

with open(sys.argv[1]) as stream:
    config = prepare_config(yaml.safe_load(stream))
validate_config(config)
ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
for kind in config["available_node_types"].values():
    kind["node_config"]["ImageId"] = image  # that of the file is the user's to choose
    if "IamInstanceProfile" in kind["node_config"]:
        kind["node_config"]["IamInstanceProfile"] = {"Name": PROFILE}
iam = boto3.client("iam")
if PROFILE not in {found["InstanceProfileName"] for found in iam.list_instance_profiles()["InstanceProfiles"]}:
    iam.create_instance_profile(InstanceProfileName=PROFILE)
config = bootstrap_aws(config)
config["provider"]["_config_cache"] = 1
config = AWSNodeProvider.fillout_available_node_types_resources(config)
provider = _get_node_provider(config["provider"], config["cluster_name"])
for name, kind in config["available_node_types"].items():
    tags = {TAG_RAY_NODE_KIND: "head" if name == config["head_node_type"] else "worker", TAG_RAY_USER_NODE_TYPE: name,
            TAG_RAY_NODE_NAME: "node"}  # fmt: skip
    provider.create_node(copy.deepcopy(kind["node_config"]), tags, 1)
instances = [item for found in ec2.describe_instances()["Reservations"] for item in found["Instances"]]
print(
    json.dumps(
        {
            "resources": {name: kind["resources"] for name, kind in config["available_node_types"].items()},
            "instances": [(item["InstanceType"], item.get("InstanceLifecycle", "on demand")) for item in instances],
        }
    )
)
