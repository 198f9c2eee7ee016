"""Admission: what the loop relies on is checked before anything can be lost.

There are two checks: before the first step, when a worker has built its replica (`check_start`),
and after the first update of each process (`check_first_update`). What breaks an assumption is
refused by a `TaskError` that names it and says what to do.
"""

from raytrain_plus.task import Task
from raytrain_plus.training.state import Replica
from raytrain_plus.training.users_optimizer import (
    check_schedule,
    check_unscaled,
    check_unscheduled,
)


def check_start(task: Task, replica: Replica) -> None:
    """Check a replica that has been built, has computed a part, and has not been trained.

    Raises:
        TaskError: the task does something that no run can keep equal on all workers.
    """
    check_schedule(task, replica.optimizer)
    check_unscaled(task, replica.model, replica.optimizer)
    replica.check_carried()


def check_first_update(replica: Replica) -> None:
    """Check a replica whose first update, in this process, has been committed.

    The optimizer has its whole state by now.

    Raises:
        TaskError: the update left something that cannot be given to another worker, or to a
            checkpoint, and back to equal bits.
    """
    check_unscheduled(replica.optimizer)
    replica.check_carried()
