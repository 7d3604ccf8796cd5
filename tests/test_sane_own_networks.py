"""A user's own checkpoints, and networks longer than a window, through tokens, latents and back."""

import pytest
import torch

from wsnotebook import evaluation, networks, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import layer_pca, sane
from wsnotebook.methods.tokens import tokens

OWN = """
from torch import nn

def bottleneck():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30, bias=False), nn.BatchNorm1d(30), nn.ReLU(),
                         nn.Linear(30, 12), nn.Tanh(), nn.Linear(12, 10))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "runs").mkdir()
    for i in range(6):
        torch.manual_seed(i)
        torch.save(networks.build("somebodys:bottleneck").state_dict(), tmp_path / "runs" / f"{i}.pt")
    return tmp_path / "runs"


def test_a_folder_of_checkpoints_goes_through(folder, digits):
    nets = zoo.from_checkpoints(folder, "somebodys:bottleneck")
    of = tokens(nets.layout, statistics=True)
    assert torch.equal(of.decode(of.encode(nets.weights), torch.zeros(nets.layout.d)), nets.weights)
    exact = layer_pca.layer_pca(nets, 64, of)  # as many latents as a row has numbers
    back = exact.decode(exact.embed(nets), like=nets)
    assert torch.allclose(back.weights, nets.weights, atol=1e-4)
    x, y = (part[:100] for part in digits.validation)
    assert (evaluation.report(back, (x, y)).predictions == evaluation.report(nets, (x, y)).predictions).mean() > 0.99
    config = sane.Config(statistics=True, window=9, halo=2, dim=12, heads=2, z=64, iterations=3, batch=4, held_out=0.2)
    model = sane.train(nets, config, x=x[:1])
    assert len(model.tokens) > config.window
    decoded = model.decode(model.embed(nets), like=nets)
    assert decoded.layout == nets.layout
    assert decoded.weights.isfinite().all()


def test_resnet_20_comes_back_bit_for_bit_and_through_windows():
    layout = Layout.of(networks.build("resnet-20"), exclude=COUNTERS)
    weights = torch.stack([layout.flatten(networks.build("resnet-20", seed=i).state_dict()) for i in range(3)])
    nets = zoo.Zoo(weights, layout, {}, "resnet-20", {})
    of = tokens(layout, statistics=True)
    assert torch.equal(of.decode(of.encode(weights), torch.zeros(layout.d)), weights)
    config = sane.Config(statistics=True, window=64, halo=8, dim=12, heads=2, blocks=1, z=8, iterations=0, held_out=0.4)
    model = sane.train(nets, config)
    z = model.embed(nets)
    assert z.shape == (3, len(model.tokens.rows), 8)
    assert len(model.tokens) > config.window
    plain = layer_pca.LayerPCA(model.standardised, *model.network.linear[:2])
    untrained, closed = (e.decode(e.embed(nets), like=nets).weights for e in (model, plain))
    assert torch.allclose(untrained, closed, atol=1e-4), "corrections start at zero, whatever the window"
