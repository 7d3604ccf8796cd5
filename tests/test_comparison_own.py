"""A user's own networks, from files to a zoo that knows what its networks do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsnotebook import evaluation, networks, zoo
from wsnotebook.comparisons import own


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    for i in range(3):
        torch.manual_seed(i)
        save_file(networks.build("squeezed:squeezed").state_dict(), tmp_path / "runs" / f"{i}.safetensors")
    return tmp_path / "runs"


def test_facts_are_what_each_network_does_by_itself(folder, digits):
    nets = own.load(folder, "squeezed:squeezed", digits)
    assert len(nets) == 3
    for i in range(3):
        network, found = nets.module(i), {}
        for part in ("train", "validation", "test"):
            x, y = getattr(digits, part)
            logits = network(x).detach().double()
            found[part] = 100 * float((logits.argmax(1) == y).double().mean())
            loss = torch.nn.functional.cross_entropy(logits, y)
            assert nets.facts[f"{part}_accuracy"][i] == pytest.approx(found[part])
            assert nets.facts[f"{part}_loss"][i] == pytest.approx(float(loss), rel=1e-5)
        assert nets.facts["gap"][i] == pytest.approx(found["train"] - found["test"])


def test_a_zoos_file_is_taken_by_its_own_name_and_keeps_its_facts(folder, digits, tmp_path):
    nets = own.load(folder, "squeezed:squeezed", digits)
    lying = replace(nets, facts={"test_accuracy": np.array([1.0, 2.0, 3.0]), "test_loss": np.ones(3)})
    again = own.load(lying.save(tmp_path / "some.safetensors"), "", digits)
    assert torch.equal(again.weights, nets.weights)
    assert torch.equal(own.load(tmp_path / "some.safetensors", "squeezed:squeezed", digits).weights, nets.weights)
    assert again.facts["test_accuracy"].tolist() == [1, 2, 3]
    assert np.array_equal(again.facts["validation_loss"], nets.facts["validation_loss"])
    assert np.array_equal(again.facts["gap"], nets.facts["train_accuracy"] - [1, 2, 3])


def test_a_trained_zoo_stays_as_it_is(digits):
    nets = zoo.train("mlp-64-6-10", digits, 2, zoo.Config(epochs=1))
    same = own.measured(nets, digits)
    assert same.facts.keys() == nets.facts.keys()
    assert all(np.array_equal(same.facts[name], values) for name, values in nets.facts.items())


@pytest.mark.parametrize("change", [{"name": "digits, negative"}, {"checksum": "0" * 64}])
def test_facts_of_other_data_are_measured_again(digits, change):
    nets = zoo.train("mlp-64-6-10", digits, 2, zoo.Config(epochs=2))
    negative = replace(digits.changed("negative", lambda x: 1 - x), **({"name": "digits"} | change))
    with pytest.warns(
        RuntimeWarning, match=rf"facts of data 'digits' .*expected of '{negative.name}' .*measured again"
    ):
        again = own.measured(nets, negative)
    assert again.facts.keys() == nets.facts.keys()
    assert np.array_equal(again.facts["test_accuracy"], evaluation.report(nets, negative.test).accuracy)
    assert np.array_equal(again.facts["gap"], again.facts["train_accuracy"] - again.facts["test_accuracy"])
    assert not np.array_equal(again.facts["test_accuracy"], nets.facts["test_accuracy"])


def test_errors_say_what_to_do(folder, digits):
    with pytest.raises(ValueError, match=r"folder of checkpoints.*network="):
        own.load(folder, "", digits)
    with pytest.raises(FileNotFoundError, match="no such file"):
        own.load(folder / "nowhere", "", digits)
    with pytest.raises(ValueError, match="does not take rows"):
        own.load(folder, "squeezed:squeezed", digits.changed("flat", lambda x: x.flatten(1)))
