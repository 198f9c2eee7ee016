"""A test that cannot run says why, and fails if it should have run."""

import pytest

from tests.expected import VARIABLE, require


def test_an_available_requirement_lets_a_test_run(monkeypatch):
    monkeypatch.setenv(VARIABLE, "lab")
    require("lab", "")


@pytest.mark.parametrize("expected", ["", "lab", "lab, browsers"])
def test_a_missing_requirement_skips_a_test(expected, monkeypatch):
    monkeypatch.setenv(VARIABLE, expected)
    with pytest.raises(pytest.skip.Exception, match="browser: it is not installed"):
        require("browser", "it is not installed")


@pytest.mark.parametrize("expected", ["browser", "lab, browser"])
def test_a_missing_requirement_that_is_expected_fails_the_test(expected, monkeypatch):
    monkeypatch.setenv(VARIABLE, expected)
    with pytest.raises(pytest.fail.Exception, match="it is not installed"):
        require("browser", "it is not installed")
