"""What executions of notebooks share."""

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache for a process, empty at first: a notebook also tests what the earlier ones kept."""
    return tmp_path_factory.mktemp("shared_cache")
