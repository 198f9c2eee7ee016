"""Removes from the import path what the tests of algorithms have added."""

import pytest

from tests.algorithms import side


@pytest.fixture(autouse=True, scope="package")
def path_for_transformers():
    yield
    side.forget()
