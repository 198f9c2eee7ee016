"""The nodes that a launch file wants, and the small computation on which all nodes must agree."""

import json

import pytest
import torch
import yaml

from raytrain_plus.nodes import doctor
from raytrain_plus.nodes.diagnosis import Expected, NodeFacts
from raytrain_plus.nodes.doctor import ClusterFileError, diagnosis_of, read_cluster_file
from raytrain_plus.nodes.node_probe import computed

LOCAL = {
    "cluster_name": "mine",
    "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]},
    "head_start_ray_commands": ["ray stop", "RAY_enable_autoscaler_v2=0 ray start --head"],
}
CLOUD = {
    "provider": {"type": "aws"},
    "head_node_type": "head",
    "available_node_types": {"head": {}, "worker": {"min_workers": 2}, "spot": {"min_workers": 1}},
}


@pytest.fixture
def written(tmp_path):
    def write(told):
        path = tmp_path / "cluster.yaml"
        path.write_text(told if isinstance(told, str) else yaml.safe_dump(told))
        return path

    return write


def test_a_local_provider_names_all_hosts(written):
    expected = read_cluster_file(written(LOCAL))
    assert expected == Expected(3, ("10.0.0.1", "10.0.0.2", "10.0.0.3"))


def test_the_packages_launch_file_has_no_problems():
    expected = read_cluster_file(doctor.Path(__file__).parents[2] / "cluster.yaml")
    assert expected.count == len(expected.addresses)
    assert expected.pitfalls == ()


def test_a_known_mistake_in_the_launch_file_is_reported(written):
    on = {**LOCAL, "head_start_ray_commands": ["ray start --head"]}
    ((what, do),) = read_cluster_file(written(on)).pitfalls
    assert "does not start all workers" in what
    assert "RAY_enable_autoscaler_v2=0" in do


def test_a_cloud_has_a_head_and_the_minimum_of_each_kind(written):
    assert read_cluster_file(written(CLOUD)) == Expected(4)


@pytest.mark.parametrize("told", ["[1, 2]", "provider: none", "a: [", "cluster_name: x", ""])
def test_a_file_that_is_not_a_launch_file_is_refused(written, told):
    with pytest.raises(ClusterFileError, match=r"cluster\.yaml"):
        read_cluster_file(written(told))
    with pytest.raises(ClusterFileError, match="No such file"):
        read_cluster_file(doctor.Path("nowhere.yaml"))


def test_a_diagnosis_survives_the_transfer_from_the_head():
    node = NodeFacts("ab", host="n1", disk=(1, 100), token=True)
    found = diagnosis_of([vars(node)], Expected(2))
    again = diagnosis_of(json.loads(json.dumps(found.as_data()))["nodes"], Expected(2))
    assert again == found
    assert not found.is_well
    assert diagnosis_of([vars(NodeFacts("ab", host="n1", token=True))], Expected(1)).is_well


def test_the_computation_repeats_its_bits_and_does_not_change_the_process():
    before = torch.get_num_threads(), torch.get_rng_state().sum().item()
    once = computed()
    torch.set_num_threads(2)
    try:
        assert computed() == once
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[0])
    assert torch.get_rng_state().sum().item() == before[1]


def test_the_computation_shows_wrong_arithmetic(monkeypatch):
    """The negative control."""
    once = computed()
    right = torch.nn.functional.layer_norm

    def wrong(*given):
        made = right(*given)
        made.view(-1)[7] += 1e-7
        return made

    monkeypatch.setattr(torch.nn.functional, "layer_norm", wrong)
    assert computed() != once
