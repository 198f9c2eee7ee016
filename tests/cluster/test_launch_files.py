"""The launch files, checked with Ray's own schema and provider, and with Kubernetes' schema.

Only the clouds themselves can check the rest: whether an image boots and accepts ssh, whether there
is a spot machine, all of Google's interface (its client is not installed here), and KubeRay.
"""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
LOCAL, AWS, GCP = "cluster.yaml", "cluster/aws.yaml", "cluster/gcp.yaml"
CLUSTER, JOB = "cluster/kubernetes/raycluster.yaml", "cluster/kubernetes/rayjob.yaml"
LAUNCHED = [LOCAL, AWS, GCP]
KUBERNETES = "1.29"

# KubeRay's API, version v1: the fields of its objects in addition to pods.
KUBERAY = {
    "cluster": {
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "authOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "autoscaler": {"version", "idleTimeoutSeconds", "resources", "upscalingMode", "volumeMounts"},
    "head": {"rayStartParams", "template", "serviceType"},
    "workers": {
        *("groupName", "replicas", "minReplicas", "maxReplicas"),
        *("rayStartParams", "template"),
    },
    "job": {
        *("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "runtimeEnvYAML"),
        "submitterPodTemplate",
    },
}


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def start_lines(config):
    """Return how Ray is started on the head and on a worker: variables and command."""
    told = []
    for kind in ("head", "worker"):
        stop, start = config[f"{kind}_start_ray_commands"]
        assert stop == "ray stop"
        words = shlex.split(start)
        command = next(i for i, word in enumerate(words) if "=" not in word)
        told.append((dict(word.split("=") for word in words[:command]), words[command:]))
    return told


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file(name):
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_refuses_unknown_fields(name):
    """The negative control."""
    for wrong in ({"setup_comands": []}, {"idle_timeout_minutes": "few"}, {"provider": {}}):
        with pytest.raises((ValidationError, KeyError)):
            validate_config(prepare_config({**read(name), **wrong}))


@pytest.mark.parametrize(
    ("name", "lines"), [(LOCAL, 3), (AWS, 5), (GCP, 4), (CLUSTER, 3), (JOB, 4)]
)
def test_the_lines_to_fill_in_are_marked(name, lines):
    marks = re.findall(r"# <- (\d)\.", (ROOT / name).read_text())
    assert sorted({int(mark) for mark in marks}) == list(range(1, lines + 1))


def test_the_files_share_all_parts_that_do_not_depend_on_the_provider():
    configs = {name: read(name) for name in LAUNCHED}
    for name in (AWS, GCP):
        for key in ("cluster_name", "file_mounts", "rsync_exclude"):
            assert configs[name][key] == configs[LOCAL][key]
        (head, head_command), (worker, worker_command) = start_lines(configs[name])
        (local_head, local_head_command), (local, local_command) = start_lines(configs[LOCAL])
        assert (head_command, worker_command) == (local_head_command, local_command)
        assert {"RAY_enable_autoscaler_v2": "0", **head} == local_head
        assert worker == {"POWER_OFF_AFTER": "10", **local}
        install = shlex.split(configs[name]["setup_commands"][-1])
        assert install[:2] == shlex.split(configs[LOCAL]["setup_commands"][-1])


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_files_to_copy_exist(name):
    for there, here in read(name)["file_mounts"].items():
        if here.startswith("~"):
            assert (there, here) == ("~/.ray/auth_token", "~/.ray/auth_token")
        else:
            assert there == f"~/.raytrain_plus/source/{here}"
            assert (ROOT / here).exists()


@pytest.mark.parametrize("name", LAUNCHED)
def test_there_is_no_access_without_the_token(name):
    for settings, command in start_lines(read(name)):
        assert settings["RAY_AUTH_MODE"] == "token"
        assert not [word for word in command if "0.0.0.0" in word]
    (_, head), _ = start_lines(read(name))
    assert "--dashboard-host=127.0.0.1" in head
    assert "--disable-usage-stats" in head


def test_version_2_of_the_autoscaler_still_forgets_the_head_of_a_local_cluster():
    """When this fails, Ray has fixed the error, and the line in cluster.yaml can be removed."""
    folder = Path(ray.autoscaler.__file__).parent
    records = "record_local_head_state_if_needed("
    assert records in (folder / "_private" / "autoscaler.py").read_text()  # version 1, the control
    assert not [path for path in (folder / "v2").rglob("*.py") if records in path.read_text()]


def test_the_head_learns_of_new_workers_in_the_file(tmp_path):
    config = prepare_config(read(LOCAL))
    (line,) = read(LOCAL)["head_setup_commands"]
    ours = {"HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path)}
    known = {**os.environ, **ours, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    state = tmp_path / "ray" / f"cluster-{config['cluster_name']}.state"

    def hear(workers):
        config["provider"]["worker_ips"] = workers
        (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
        subprocess.run(["bash", "-c", line], env=known, check=True, capture_output=True)
        return json.loads(state.read_text())

    # As after an autoscaler that has started Ray on the only worker.
    told = hear(["192.0.2.11"])
    assert "192.0.2.12" not in told
    told["192.0.2.11"]["state"] = "running"
    state.write_text(json.dumps(told))
    told = hear(["192.0.2.11", "192.0.2.12"])
    assert (told["192.0.2.11"]["state"], told["192.0.2.12"]["state"]) == ("running", "terminated")


def cluster_of(manifest):
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def pods_of(manifest):
    cluster = cluster_of(manifest)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def check_kubernetes(manifest):
    """Raise an error if Kubernetes or KubeRay would refuse a manifest or ignore a field."""
    cluster = cluster_of(manifest)
    said = {
        "cluster": [cluster],
        "autoscaler": [cluster["autoscalerOptions"]],
        "head": [cluster["headGroupSpec"]],
        "workers": cluster["workerGroupSpecs"],
        "job": [manifest["spec"]] if manifest["kind"] == "RayJob" else [],
    }
    for what, objects in said.items():
        for each in objects:
            if unknown := set(each) - KUBERAY[what]:
                raise ValueError(f"KubeRay's {what} has no {sorted(unknown)}")
    for template in pods_of(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", [CLUSTER, JOB])
def test_kubernetes_accepts_the_files(name):
    manifest = read(name)
    check_kubernetes(manifest)
    assert manifest["apiVersion"] == "ray.io/v1"
    cluster = cluster_of(manifest)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    _, worker = pods_of(manifest)
    assert worker["spec"]["restartPolicy"] == "Never"
    # The agent has drained the node, and the run has left it, while Kubernetes still waits.
    grace = worker["spec"]["terminationGracePeriodSeconds"]
    hooks = worker["spec"]["containers"][0]["lifecycle"]
    start, stop = (hooks[hook]["exec"]["command"][-1] for hook in ("postStart", "preStop"))
    assert int(re.search(r"--grace (\d+)", start)[1]) < grace
    assert int(re.search(r"sleep (\d+)", stop)[1]) < grace


def test_kubernetes_would_refuse_a_broken_file():
    """The negative control."""

    def in_pod(name, value):
        def put(manifest):
            pods_of(manifest)[1]["spec"]["containers"][0][name] = value

        return put

    breaks = [
        in_pod("imagee", "x"),
        in_pod("resources", "much"),
        lambda manifest: cluster_of(manifest).update(enableAutoscaling=True),
        lambda manifest: cluster_of(manifest)["workerGroupSpecs"][0].update(minReplica=1),
    ]
    for each in breaks:
        manifest = copy.deepcopy(read(CLUSTER))
        each(manifest)
        with pytest.raises((kubernetes_validate.ValidationError, ValueError)):
            check_kubernetes(manifest)


def test_the_job_runs_on_the_same_cluster():
    assert cluster_of(read(JOB)) == cluster_of(read(CLUSTER))


@pytest.mark.parametrize("name", [*LAUNCHED, CLUSTER, JOB])
def test_no_file_holds_a_secret(name):
    assert secrets(json.dumps(read(name))) == []


def secrets(text):
    """Return all texts that look like a key or a token."""
    return re.findall(r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{64}\b|RAY_AUTH_TOKEN=", text)


def test_a_secret_is_found():
    """The negative control."""
    assert secrets("RAY_AUTH_TOKEN=" + "0a" * 32) != []


def pods(name):
    """Return the pods of a manifest by their role."""
    spec = read(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    found = {"head": cluster["headGroupSpec"]["template"]["spec"]}
    found |= {w["groupName"]: w["template"]["spec"] for w in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in spec:
        found["submitter"] = spec["submitterPodTemplate"]["spec"]
    return found, cluster


@pytest.mark.parametrize("name", [CLUSTER, JOB])
def test_only_the_autoscaler_can_speak_to_kubernetes(name):
    found, cluster = pods(name)
    assert len(found) == (3 if name == JOB else 2)
    tokens = "/var/run/secrets/kubernetes.io/serviceaccount"
    for pod in found.values():
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert "volumeMounts" not in container
    (mount,) = cluster["autoscalerOptions"]["volumeMounts"]  # the control: the autoscaler needs one
    assert mount["mountPath"] == tokens
    assert mount["name"] in {volume["name"] for volume in found["head"]["volumes"]}


def test_only_the_clusters_own_pods_reach_it():
    policy = read("cluster/kubernetes/networkpolicy.yaml")
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    ours, others = spec["ingress"]
    assert ours["from"] == [{"podSelector": spec["podSelector"]}]
    assert [port["port"] for port in others["ports"]] == [8265]
    label = read(JOB)["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert others["from"][0] == {"podSelector": {"matchLabels": label}}
