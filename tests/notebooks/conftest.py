"""What executions of notebooks share."""

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache for a process, empty at first: the second execution of a notebook also tests what the first kept."""
    return tmp_path_factory.mktemp("shared_cache")
