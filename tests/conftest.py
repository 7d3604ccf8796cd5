"""What every test needs: folders of its own instead of the user's, and one thread, so that numbers repeat."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    for name in ("CACHE", "FIGURES"):
        monkeypatch.setenv(f"WSNOTEBOOK_{name}", str(tmp_path_factory.mktemp(name.lower())))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
