"""What the tests of algorithms put on the path is taken off again."""

import pytest

from tests.algorithms import side


@pytest.fixture(autouse=True, scope="package")
def path_for_transformers():
    yield
    side.forget()
