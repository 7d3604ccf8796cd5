"""Weight flow end to end on each kind of network, in a small form: zoo, alignment, flow, samples that work."""

import numpy as np
import pytest

from wsnotebook import datasets, evaluation, networks, symmetry, zoo
from wsnotebook.methods import weight_flow
from wsnotebook.methods.closed_form_flow import ClosedForm

SMALL = weight_flow.Config(hidden=64, iterations=800, batch=32, lr=3e-3)


def test_iris_with_five_inits_is_generated_by_init(tmp_path):
    iris = datasets.load("iris")
    config = zoo.Config(epochs=60, batch=16, lr=3e-3, init=networks.INITS)
    nets = zoo.train("mlp-4-16-3", iris, 50, config, folder=tmp_path)
    assert set(nets.facts["init"]) == set(networks.INITS)
    flow = weight_flow.train(nets, weight_flow.Config(condition="init", hidden=64, iterations=1000, lr=3e-3))
    for init in ("normal", "default"):
        made = flow.sample(20, condition=init)
        own, others = nets.filter(nets.facts["init"] == init), nets.filter(nets.facts["init"] != init)
        near = evaluation.nearest(made, own).distance, evaluation.nearest(made, others).distance
        assert np.median(near[0]) < np.median(near[1])
    accuracy = evaluation.report(flow.sample(30), iris.validation).accuracy
    assert np.median(accuracy) > 80


@pytest.mark.parametrize(("network", "n"), [("resnet-8", 4), ("vit-tiny", 4), ("cnn-tiny", 12)])
@pytest.mark.parametrize("align", [True, False])
def test_networks_of_every_kind_come_back_working(digits, tmp_path_factory, network, n, align):
    epochs = {"resnet-8": 2, "vit-tiny": 6, "cnn-tiny": 20}[network]
    config = zoo.Config(epochs=epochs, batch=64, lr=3e-3)
    folder = tmp_path_factory.getbasetemp() / f"flow-{network}"  # the same zoo for both
    nets = zoo.train(network, digits, n, config, folder=folder)
    trained = evaluation.report(nets, digits.validation).accuracy
    nets = symmetry.align(nets, reference=0).zoo if align else nets
    copies = evaluation.recalibrated(ClosedForm(nets).sample(4), digits.train[0])
    near = evaluation.nearest(copies, nets)
    accuracy = evaluation.report(copies, digits.validation).accuracy
    assert (near.distance < 0.01 * np.median(evaluation.leave_one_out(nets).distance)).all()
    assert (accuracy > trained[near.index] - 8).all()
    made = weight_flow.train(nets, SMALL).sample(4, steps=20)
    made = evaluation.recalibrated(made, digits.train[0])
    assert evaluation.report(made, digits.validation).accuracy.max() > 25  # of ten classes
