"""A made-up journal of a disturbed run, for the tests of the judges of such runs."""

import os

from raytrain_plus import Fault

KILL = Fault(step=4, action="kill", phase="backward", victim=1)


def generation(number, step, *members):
    return {
        "event": "generation",
        "generation": number,
        "step": step,
        "workers": len(members),
        "members": list(members),
    }


def step(number, workers):
    return {"event": "step", "step": number, "loss_hex": float(number).hex(), "workers": workers}


def worker(name, state):
    return {"event": "worker", "worker": name, "state": state, "pid": os.getpid()}


def healthy():
    """Return the journal of six steps; the second worker is killed in the fourth, and replaced."""
    return [
        worker("w0", "ready"),
        worker("w1", "ready"),
        generation(1, 0, "w0", "w1"),
        *(step(n, 2) for n in (1, 2, 3)),
        worker("w1", "lost"),
        {"event": "fault", "step": 4, "action": "kill", "phase": "backward", "hit": ["w1"]},
        generation(2, 3, "w0"),
        step(4, 1),
        worker("w2", "ready"),
        generation(3, 4, "w0", "w2"),
        *(step(n, 2) for n in (5, 6)),
        {"event": "evaluate", "step": 6, "metrics": {"accuracy": 0.5}},
        {"event": "end", "digest": "d1"},
    ]
