"""What this package uses of Ray that Ray does not promise to keep: all of it, in one place.

A version of Ray without one of these names fails here, and not in a run. The bounds of Ray's
version in pyproject.toml are those between which all are there.
"""

import importlib
import inspect

import pytest
import ray
from ray.core.generated import autoscaler_pb2_grpc, common_pb2, gcs_pb2, gcs_service_pb2_grpc

NAMES = {
    "ray._private.authentication.authentication_token_setup": [
        "maybe_enable_token_auth_if_token_available"
    ],
    "ray._private.grpc_utils": ["init_grpc_channel"],
    "ray._private.services": ["ConsolePopen"],
    "ray._private.state": ["state"],
    "ray._private.utils": ["get_entrypoint_name", "set_sigterm_handler"],
    "ray._private.worker": ["global_worker"],
    "ray.train.v2._internal.execution.context": ["TrainRunContext"],
    "ray.train": ["LoggingConfig", "RunConfig", "ScalingConfig"],
}


@pytest.mark.parametrize("module", NAMES)
def test_a_module_has_the_names_that_are_used(module):
    found = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


def test_the_token_is_presented_without_a_warning():
    module = importlib.import_module("ray._private.authentication.authentication_token_setup")
    present = module.maybe_enable_token_auth_if_token_available
    assert "warn_if_disabled" in inspect.signature(present).parameters


@pytest.mark.parametrize(
    "method", ["actor_table", "get_draining_nodes", "_connect_and_get_accessor"]
)
def test_the_tables_of_a_cluster_can_be_asked(method):
    assert callable(getattr(ray._private.state.state, method))


def test_the_messages_have_the_fields_that_are_read():
    fields = {field.name for field in gcs_pb2.WorkerTableData.DESCRIPTOR.fields}
    assert {"exit_type", "exit_detail"} <= fields
    assert "no_such_field" not in fields
    assert "address" in {field.name for field in gcs_pb2.ActorTableData.DESCRIPTOR.fields}
    assert isinstance(common_pb2.NODE_OUT_OF_MEMORY, int)
    assert hasattr(autoscaler_pb2_grpc, "AutoscalerStateServiceStub")
    assert hasattr(gcs_service_pb2_grpc, "NodeInfoGcsServiceStub")
