"""Callbacks of Ray Train get what a run's journal says, and their errors end nothing."""

import ray.train
from ray.train import RunConfig, ScalingConfig

from raytrain_plus.elastic.coordinator.callbacks import CallbackLogger, WorkerLostError
from raytrain_plus.loggers.feed import Feed
from tests.loggers.test_feed import events, write
from tests.observe import journals


class Recording(ray.train.UserCallback):
    def __init__(self):
        self.reports, self.errors = [], []

    def after_report(self, run_context, metrics, checkpoint):
        self.reports.append((run_context, metrics, checkpoint))

    def after_exception(self, run_context, worker_exceptions):
        self.errors.append((run_context, worker_exceptions))


class Failing(ray.train.UserCallback):
    def after_report(self, *_):
        raise OSError("no route to host")


def fed(folder, told, *callbacks):
    write(folder, told)
    run = RunConfig(name="run", callbacks=[*callbacks])
    Feed("callbacks", lambda: CallbackLogger(callbacks, run, ScalingConfig(), {}), folder).look()


def test_each_evaluation_and_each_checkpoint_is_reported_once(tmp_path, capfd):
    got = Recording()
    fed(tmp_path, events(6), Failing(), got)
    steps = [(metrics[0]["steps"], metrics[0]["accuracy"]) for _, metrics, _ in got.reports]
    assert steps == [(3, 0.3), (6, 0.6), (6, 0.6)]
    assert [one and one.path for *_, one in got.reports] == [None, None, "/runs/c_6"]
    assert all(metrics[0]["loss"] for _, metrics, _ in got.reports)
    context = got.reports[0][0]
    assert (context.run_id, context.get_run_config().name) == ("r1", "run")
    assert got.errors == []
    assert "no route to host" in capfd.readouterr().err  # of the callback before


def test_a_lost_worker_and_a_failed_run_are_exceptions(tmp_path):
    got = Recording()
    *before, end = events(3)
    lost = {"event": "worker", "time": 20.5, "worker": "w1", "state": "lost", "reason": "its node"}
    failed = {**end, "state": "failed", "error": "no memory is left"}
    fed(tmp_path, [*before, lost, failed], got)
    (first, second) = [errors[0] for _, errors in got.errors]
    assert isinstance(first, WorkerLostError)
    assert (str(first), str(second)) == ("w1: its node", "no memory is left")
    assert journals.end(21.0, 3)["state"] != "failed"  # the control: see above
