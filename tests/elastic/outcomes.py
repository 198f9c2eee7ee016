"""Reads an outcome and a journal of a run."""

from raytrain_plus.observe.causes import causes_of, sentence
from raytrain_plus.observe.journal import read
from tests.elastic.scripted_pool import loss_of


def groups_in(outcome):
    return [
        (g["generation"], g["step"], g["workers"], sentence(causes_of(g)))
        for g in outcome.generations
    ]


def check_journal(folder, total=10):
    """Check that the journal has each step once, and an end."""
    events = read(folder)
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, total + 1))
    assert [event["loss"] for event in steps] == [loss_of(step) for step in range(1, total + 1)]
    assert [event["event"] for event in events].count("end") == 1
    return events


def notes(folder, kind):
    return [event for event in read(folder) if event["event"] == kind]
