"""Journals of made-up runs, written as a coordinator writes them."""

from raytrain_plus.observe.events import VERSION

RUN = "a run"
LOST = {"kind": "lost", "worker": "w1"}
JOINED = {"kind": "joined", "worker": "w2"}


def run_line(time, total=100, **more):
    identity = {
        "seed": 17,
        "batch_size": 32,
        "logical_ranks": 8,
        "task settings": {"width": 3},
        "task code": "c" * 64,
        "data content": "d" * 64,
        "algorithms": {"EMA": {"half_life": "50ba"}},
    }
    fields = {"run": RUN, "total_steps": total, "steps_per_epoch": 10, "batch_size": 32}
    described = {"address": "127.0.0.1:1", "workers": [1, 3], "threads": 1, "task": "tasks:Small"}
    fields |= {**described, "identity": identity, "elastic": {"check_every": 10}, "ray": "2.60.0"}
    return {"event": "run", "time": time, "version": VERSION, **fields, **more}


def generation(time, number, step, members, causes=({"kind": "start"},), pause=0.0):
    fields = {"generation": number, "step": step, "workers": len(members), "causes": list(causes)}
    fields |= {"pause_seconds": pause, "members": list(members)}
    return {"event": "generation", "time": time, **fields}


def step(time, number, generation=1, loss=None):
    loss = 2.0 / number if loss is None else loss
    fields = {"step": number, "loss": loss, "loss_hex": loss.hex(), "generation": generation}
    return {"event": "step", "time": time, **fields, "busy_seconds": 0.5, "workers": 2}


def usage(time, generation, until, workers=(), **seconds):
    traffic = {"hits": 6, "misses": 2, "fetched_files": 4, "fetched_bytes": 3_000_000}
    fields = {"generation": generation, "workers": list(workers), "until": until}
    return {"event": "usage", "time": time, **fields, "seconds": seconds, "traffic": traffic}


def evaluation(time, step, **metrics):
    return {"event": "evaluate", "time": time, "step": step, "metrics": metrics}


def end(time, step, state="finished", **more):
    fields = {"state": state, "error": "", "digest": "e" * 64, "loss": 0.5, "metrics": {}}
    costs = {"EMA": {"seconds": 0.5, "acted": 20, "idle": 0}}
    return {
        "event": "end",
        "time": time,
        **fields,
        "bitwise": True,
        "costs": costs,
        "step": step,
    } | (more)


def disturbed():
    """A run of 20 steps: one of two workers is lost after step 10; another joins after step 15."""
    lost = {"event": "worker", "time": 22.0, "worker": "w1", "state": "lost", "reason": "it died"}
    kill = {"event": "fault", "time": 22.1, "step": 11, "action": "kill", "hit": ["w1"]}
    kill["phase"] = "backward"
    fingerprint = {"torch": "2.13.0", "instruction set": "AVX2", "probe gradient": "f" * 64}
    return [
        run_line(0.0, total=20),
        {"event": "environment", "time": 9.0, "fingerprint": fingerprint},
        generation(10.0, 1, 0, ["w0", "w1"]),
        *(step(10.0 + n, n) for n in range(1, 11)),
        lost,
        usage(22.0, 1, 20.0, ["w0"], compute=6.0, exchange=3.0, data=1.0, forming=0.5),
        kill,
        generation(22.5, 2, 10, ["w0"], [LOST], 2.5),
        *(step(22.5 + n - 10, n, 2) for n in range(11, 16)),
        evaluation(27.9, 15, accuracy=0.75, table=[1, 2]),
        usage(28.0, 2, 28.0, ["w0"], compute=5.0, evaluation=0.25, snapshot=0.25),
        generation(29.0, 3, 15, ["w0", "w2"], [JOINED], 1.5),
        *(step(29.0 + n - 15, n, 3) for n in range(16, 21)),
        {
            "event": "checkpoint",
            "time": 34.0,
            "step": 20,
            "folder": "runs/here/checkpoint_00000020",
        },
        usage(34.1, 3, 34.0, ["w0", "w2"], compute=8.0, exchange=2.0),
        end(35.0, 20),
    ]
