"""cluster/aws.yaml with Ray's own node provider, on a simulated AWS (moto).

moto records the requests to EC2, not their effects: no machine boots.
"""

import copy
from pathlib import Path

import boto3
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)

FILE = Path(__file__).parents[2] / "cluster" / "aws.yaml"
REGION = "us-east-1"


@pytest.fixture(scope="module")
def ec2(tmp_path_factory):
    """A simulated AWS account, and a home folder for the key pair that Ray makes."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "played")
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        with mock_aws():
            yield boto3.client("ec2", REGION)


@pytest.fixture(scope="module")
def config(ec2):
    """The configuration that `ray up` makes from the file with its five lines filled in."""
    config = yaml.safe_load(FILE.read_text())
    group = ec2.create_security_group(GroupName="ours", Description="ours")["GroupId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for kind, node_type in config["available_node_types"].items():
        machine = node_type["node_config"]
        machine.update(ImageId=image, SecurityGroupIds=[group])
        profile = machine["IamInstanceProfile"]["Name"]
        assert profile.endswith(kind)
        boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(config))
    validate_config(config)
    return AWSNodeProvider.bootstrap_config(config)


@pytest.fixture
def launched(config):
    return copy.deepcopy(config)


@pytest.fixture
def provider(launched):
    provider = AWSNodeProvider(launched["provider"], launched["cluster_name"])
    yield provider
    if left := provider.non_terminated_nodes({}):
        provider.terminate_nodes(left)


def create(provider, config, kind, node_type, **changes):
    """Start a machine as Ray does, and return AWS's description of it."""
    machine = {**config["available_node_types"][node_type]["node_config"], **changes}
    tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type}
    provider.create_node(machine, tags, 1)
    (node,) = provider.non_terminated_nodes(tags)
    told = boto3.client("ec2", REGION).describe_instances(InstanceIds=[node])
    return node, told["Reservations"][0]["Instances"][0]


def test_ray_knows_the_resources_of_the_machines(launched):
    types = launched["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0  # from the file: it does not train
    assert types["worker"]["resources"]["CPU"] == 8
    assert (types["worker"]["min_workers"], types["worker"]["max_workers"]) == (0, 8)


@pytest.mark.usefixtures("launched")
def test_ray_makes_no_rights_of_its_own(ec2):
    """Neither a role that may do everything with EC2 and S3, nor ssh from everywhere."""
    assert boto3.client("iam").list_roles()["Roles"] == []
    groups = ec2.describe_security_groups()["SecurityGroups"]
    assert sorted(group["GroupName"] for group in groups) == ["default", "ours"]
    open_to_all = [rule for group in groups for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert open_to_all == []


def test_without_lines_of_ours_ray_would_make_rights(launched, ec2):
    """The negative control."""
    for node_type in launched["available_node_types"].values():
        del node_type["node_config"]["SecurityGroupIds"]
    AWSNodeProvider.bootstrap_config(launched)
    made = [
        group
        for group in ec2.describe_security_groups()["SecurityGroups"]
        if group["GroupName"] not in ("default", "ours")
    ]
    ranges = [each for rule in made[0]["IpPermissions"] for each in rule["IpRanges"]]
    assert {"CidrIp": "0.0.0.0/0"} in ranges
    for group in made:
        ec2.delete_security_group(GroupId=group["GroupId"])


def test_the_head_is_on_demand_and_workers_are_spot(launched, provider):
    _, head = create(provider, launched, NODE_KIND_HEAD, "head")
    _, worker = create(provider, launched, NODE_KIND_WORKER, "worker")
    assert "InstanceLifecycle" not in head
    assert worker["InstanceLifecycle"] == "spot"
    assert (head["InstanceType"], worker["InstanceType"]) == ("m7i.large", "m7i.2xlarge")
    for machine, kind in ((head, "head"), (worker, "worker")):
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"raytrain-plus-{kind}")
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_what_is_terminated_is_gone(launched, provider, ec2):
    nodes = [
        create(provider, launched, NODE_KIND_HEAD, "head")[0],
        create(provider, launched, NODE_KIND_WORKER, "worker")[0],
    ]
    provider.terminate_node(nodes[1])  # as the autoscaler does with an idle machine
    assert provider.non_terminated_nodes({}) == [nodes[0]]
    provider.terminate_nodes([nodes[0]])  # as `ray down` does
    assert provider.non_terminated_nodes({}) == []
    told = ec2.describe_instances()["Reservations"]
    states = {i["State"]["Name"] for reservation in told for i in reservation["Instances"]}
    assert states == {"terminated"}  # not stopped: the disk of a stopped machine costs money


def test_aws_refuses_unknown_settings(launched, provider):
    """The negative control."""
    with pytest.raises(ParamValidationError, match="InstanceMarketOption"):
        create(provider, launched, NODE_KIND_WORKER, "worker", InstanceMarketOption={})
