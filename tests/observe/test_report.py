"""The page shows the journal's content in every state of a run, and no text becomes markup."""

import random
from html.parser import HTMLParser

import pytest

from raytrain_plus.observe import journal
from raytrain_plus.observe.report.changes import changes_of
from raytrain_plus.observe.report.history import JournalError, read_history
from raytrain_plus.observe.report.page import page_of
from tests.observe import journals
from tests.observe.test_charts import HOSTILE, Tags


class Words(HTMLParser):
    """The text of a page, without its scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self._skip = [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        del attrs
        self._skip += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skip -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._skip and data.strip():
            self.found.append(" ".join(data.split()))


def page(events, now=1e9):
    return page_of(read_history(events), now)


def words(events, now=1e9):
    return " | ".join(Words(page(events, now)).found)


def test_the_page_shows_all_of_a_disturbed_run():
    said = words(journals.disturbed())
    for expected in (
        "a run | finished",
        "20 of 20 steps in 35.0 s with 1 to 2 workers; the group changed 2 times",
        "and training paused 3.50 s for it (10.0 % of the time).",
        "w1 lost | w1 lost: it died | on purpose: kill of w1 in backward | 2 → | 1 | 2.50 s",
        "accuracy | 0.75 | last evaluation",
        "exchange | 5.00 s | 12.8 %",
        "a worker was lost | 1 | 2.50 s | 7.1 %",
        "same bits: yes",
        "instruction set | AVX2",
        "e" * 64,
        "fetched from the store | 9 MB | 12 files",
        "cache hits | 18 | 75.0 %",
        "EMA | half_life=50ba | 0.50 s",
        "last | step 20 | runs/here/checkpoint_00000020",
        "Unknown is the time of lost workers",
        "table | [1, 2]",
    ):
        assert expected in said
    assert "Why it failed" not in said


def test_a_live_run_has_a_page():
    events = journals.disturbed()[:20]
    assert events[-1]["event"] == "step"
    said = words(events)
    assert "a run | running" in said
    assert "The group that trains now reports its time when it ends." in said
    assert "same bits: so far" in said
    assert "last written 30.0 s before this page" in words(events, events[-1]["time"] + 30)


@pytest.mark.parametrize("count", range(1, len(journals.disturbed()) + 1))
def test_there_is_a_page_wherever_a_journal_ends(count):
    assert "</html>" in page(journals.disturbed()[:count])


def test_a_journal_without_a_run_is_refused():
    with pytest.raises(JournalError, match="no `run` line"):
        read_history([])
    with pytest.raises(JournalError):
        read_history(journals.disturbed()[1:])


def test_a_run_that_failed_shows_its_traceback():
    trace = 'Traceback\n  File "task.py"\nValueError: a < b'
    events = [journals.run_line(0.0), journals.end(5.0, 0, "failed", error=trace, digest="")]
    text = page(events)
    assert "a &lt; b" in text
    assert "Why it failed" in words(events)


def test_a_run_of_one_step_has_a_page():
    events = [
        journals.run_line(0.0, total=1),
        journals.generation(1.0, 1, 0, ["w0"]),
        journals.step(2.0, 1),
        journals.usage(2.1, 1, 2.0, ["w0"], compute=1.0),
        journals.end(2.5, 1),
    ]
    assert "1 of 1 steps in 2.50 s with 1 worker." in words(events)
    assert 'class="dots c0"' in page(events)


def test_withdrawn_steps_are_removed_and_reported():
    events = journals.disturbed()[:13]
    gone = {"event": "withdrawn", "time": 20.5, "step": 4, "reason": "bad bits", "generation": 1}
    history = read_history([*events, gone, journals.step(21.0, 5, 2, loss=0.125)])
    assert list(history.steps) == [1, 2, 3, 4, 5]
    assert history.losses[-1] == 0.125
    assert history.withdrawn == 6
    assert "6 steps were withdrawn and computed again" in words([*events, gone])


def test_a_resumed_run_continues_on_the_page():
    crashed = journals.disturbed()[:13]  # after ten steps
    later = [
        journals.run_line(1000.0, total=20, resumed=True, resumed_step=8),
        journals.generation(1003.0, 1, 8, ["w0"]),
        journals.step(1004.0, 11),
        journals.end(1005.0, 11),
    ]
    history = read_history([*crashed, *later])
    assert list(history.steps) == list(range(1, 12))
    assert history.active[-1] == 20.0 + 4.0  # the time between the two does not count
    told = [(change.what, change.at, change.step) for change in changes_of(history)]
    assert told == [
        ("start", 10.0, 0),
        ("no end is written", 20.0, 10),
        ("resumed", 23.0, 8),
        ("finished", 25.0, 11),
    ]
    changed = [{**later[0], "changes": ["seed: was 1, is 2"]}, *later[1:]]
    assert list(read_history([*crashed, *changed]).steps) == [*range(1, 9), 11]
    assert "same bits: no" in words([*crashed, *changed])
    assert "it was resumed once." in words([*crashed, *later])
    changes = ["environment: torch is 2, before it was 1"]
    other = {"event": "environment", "time": 1002.5, "fingerprint": {"torch": "2"}}
    moved = [{**later[0]}, {**other, "changes": changes}, *later[1:]]
    history = read_history([*crashed, *moved])
    assert list(history.steps) == [*range(1, 9), 11]
    assert "torch is 2, before it was 1" in words([*crashed, *moved])


def test_no_text_of_a_journal_becomes_markup():
    def hostile(value):
        if isinstance(value, dict):
            return {
                k if k in kept else k + HOSTILE: v
                if k == "kind"
                else hostile(v)  # which is checked
                for k, v in value.items()
            }
        if isinstance(value, list):
            return [hostile(one) for one in value]
        return value + HOSTILE if isinstance(value, str) else value

    plain = journals.disturbed()
    kept = {key for event in plain for key in event} | {"compute", "data", "exchange"}
    kept |= {
        "kind",
        "worker",
        "hits",
        "misses",
        "algorithms",
        "seconds",
        "acted",
        "idle",
        "EMA",
        "accuracy",
    }
    kept |= {"fetched_files", "fetched_bytes", "evaluation", "snapshot", "forming"}
    kept |= set(plain[0]["identity"]) | set(plain[1]["fingerprint"])
    attacked = [{**hostile(event), "event": event["event"]} for event in plain]
    attacked[0]["run"] = "<script>alert(1)</script>"
    text = page(attacked)
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    assert "onerror" not in [name for _, attributes in Tags(text).found for name in attributes]
    scripts = [tag for tag, _ in Tags(text).found].count("script")
    assert scripts == [tag for tag, _ in Tags(page(plain)).found].count("script")


def test_the_page_needs_no_other_file():
    text = page(journals.disturbed())
    for tag, attributes in Tags(text).found:
        assert not {"src", "srcset", "data", "action"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in text
    assert "@import" not in text


def test_a_very_long_run_has_a_small_page_that_keeps_its_peak(tmp_path):
    noise = random.Random(1)
    steps = 100_000
    lines = [journals.run_line(0.0, total=steps), journals.generation(1.0, 1, 0, ["w0"])]
    for n in range(1, steps + 1):
        loss = 77.125 if n == 54_321 else 1.0 + noise.random()
        lines.append(journals.step(1.0 + n / 50, n, loss=loss))
    path = tmp_path / journal.FILE_NAME
    path.write_bytes(b"".join(map(journal.line_of, lines)) + b'{"event": "st')
    text = page(journal.each(path))
    assert "77.125" in text
    assert "100,000 of 100,000 steps" in text
    assert len(text) < 500_000


def test_many_changes_are_shown_without_overlap():
    events = [journals.run_line(0.0, total=1000)]
    for n in range(300):
        events += [
            journals.generation(10.0 * n + 1, n + 1, n, ["w0"], [journals.JOINED], 1.0),
            journals.step(10.0 * n + 2, n + 1, n + 1),
        ]
    text = page(events)
    assert "181 more in between are left out" in " ".join(Words(text).found)
    assert '<a class="pin' not in text
    assert text.count('class="tick good"') == 299


def test_logged_scalars_have_charts_without_withdrawn_steps_and_without_nan():
    logged = [{"rate": 0.5}, {"rate": 0.25, "odd": "nan"}, {"rate": 0.125}]
    steps = [journals.step(10.0 + i, i + 1) | {"logged": one} for i, one in enumerate(logged)]
    events = [journals.run_line(0.0), journals.generation(9.0, 1, 0, ["w0"]), *steps]
    history = read_history(events)
    assert list(history.logged["rate"][2]) == [0.5, 0.25, 0.125]
    said = words(events)
    assert "rate over steps" in said
    assert "odd over steps" not in said
    history = read_history([*events, {"event": "withdrawn", "time": 14.0, "step": 2}])
    assert list(history.logged["rate"][2]) == [0.5, 0.25]
