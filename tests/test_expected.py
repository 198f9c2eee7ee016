"""A test that cannot run says why, and fails where it should have run."""

import pytest

from tests.expected import VARIABLE, require


def test_what_is_there_lets_a_test_run(monkeypatch):
    monkeypatch.setenv(VARIABLE, "lab")
    require("lab", "")


@pytest.mark.parametrize("expected", ["", "lab", "lab, browsers"])
def test_what_is_missing_skips_a_test(expected, monkeypatch):
    monkeypatch.setenv(VARIABLE, expected)
    with pytest.raises(pytest.skip.Exception, match="browser: it is not installed"):
        require("browser", "it is not installed")


@pytest.mark.parametrize("expected", ["browser", "lab, browser"])
def test_what_is_missing_though_it_is_promised_fails_it(expected, monkeypatch):
    monkeypatch.setenv(VARIABLE, expected)
    with pytest.raises(pytest.fail.Exception, match="it is not installed"):
        require("browser", "it is not installed")
