"""After corruption was found: who is guilty, and from where the others go on."""

from raytrain_plus.elastic.chronicle import Chronicle
from raytrain_plus.elastic.keeping import Keeping
from raytrain_plus.elastic.pool import Pool
from raytrain_plus.elastic.recruiting import Recruiting
from raytrain_plus.elastic.suspicion import Corruption, History


def expel(
    found: Corruption,
    history: History,
    *,
    pool: Pool,
    crew: Recruiting,
    keeping: Keeping,
    chronicle: Chronicle,
) -> None:
    """End the guilty, and go back to what can be trusted.

    Whether somebody's arithmetic is wrong, computing what is known shows. If steps that were
    committed cannot be trusted, they are withdrawn; all go back to the newest checkpoint from
    before, or, where there is none, to the beginning, with new workers.
    """
    asked = list(crew.seats) if found.tie else [w for w in found.suspects if w in crew.seats]
    guilty = [worker for worker in asked if not pool.computes_right(worker)]
    trusted = history.trusted(found, guilty)
    chronicle.note(
        "corruption",
        step=found.step,
        reason=found.why,
        accused=list(found.accused),
        suspects=list(found.suspects),
        guilty=guilty,
        trusted=trusted,
    )
    for worker in dict.fromkeys([*found.accused, *guilty]):
        crew.expel(worker, found.why)
    if trusted == found.step:
        return
    chronicle.withdraw(trusted, found.why)
    keeping.distrust_after(trusted)
    if keeping.newest() is not None:
        crew.distrust_all()
    else:
        for worker in list(crew.seats):
            crew.expel(worker, "nobody has a state that can be trusted")
