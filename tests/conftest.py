"""What every test needs: folders of its own instead of the user's, and one thread, so that numbers repeat."""

import pytest
import torch

from wsnotebook import datasets, networks, training


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    for name in ("CACHE", "FIGURES"):
        monkeypatch.setenv(f"WSNOTEBOOK_{name}", str(tmp_path_factory.mktemp(name.lower())))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="session")
def network(digits):
    """A small network trained on digits; the methods work on copies of it."""
    network = networks.build("mlp-64-24-10")
    network.load_state_dict(training.train(network, digits, training.Config(epochs=8, batch=64, lr=3e-3)).state)
    return network
