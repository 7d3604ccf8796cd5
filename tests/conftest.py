"""What every test needs: folders of its own instead of the user's, and one thread, so that numbers repeat."""

import pytest
import torch

from wsnotebook import datasets, networks, training
from wsnotebook.methods import soft_weight_sharing as sws

ALIKE = {
    "zoos": ("03", "04", "05", "06", "08", "09"),
    "files": ("01", "02", "07"),
}  # notebooks that share what they make


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one process, for what they share; notebooks to the process that has what they need.

    Not by xdist's own groups, which pytest 9.2 does not see.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            if path.endswith("notebooks/test_own_networks.py"):
                return "zoos"
            if path.endswith("notebooks/test_execute.py"):
                number = test.partition("[")[2][:2]
                return next((name for name, numbers in ALIKE.items() if number in numbers), number)
            return path

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    for name in ("CACHE", "FIGURES", "RUNS"):
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


@pytest.fixture(scope="session")
def redundant(digits):
    """A trained network with weights to spare: under the prior its spike condenses."""
    network = networks.build("mlp-64-100-10")
    network.load_state_dict(training.train(network, digits, training.Config(epochs=8, batch=64, lr=3e-3)).state)
    return network


@pytest.fixture(scope="session")
def condensing():
    """Settings under which it does so in less than a second."""
    return sws.Config(
        components=5,
        tau=0.3,
        pi_0=0.99,
        init_sigma=0.1,
        gamma_zero=(1000.0, 0.02),
        lr_weights=3e-3,
        lr_means=1e-3,
        lr_log_variances=0.05,
        lr_logits=0.02,
        train_rest=True,
        epochs=10,
        batch=32,
    )
