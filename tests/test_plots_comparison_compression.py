"""Laws of the pictures of compressed networks: every file stands where it was measured, and what is in it is drawn."""

import numpy as np
import pytest
import torch
from matplotlib.markers import CARETUP
from test_plots import tiny_run

from wsnotebook import networks, plots
from wsnotebook.comparisons.compression import Entry
from wsnotebook.evaluation import Score, interval
from wsnotebook.methods.codebook import Clustered
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank
from wsnotebook.plots import comparison_compression as pictures
from wsnotebook.plots.methods import style


def entry(method, size, test, *, validation=2.0, model=None, shown=None, case="n", setting="as it comes"):
    model = model or networks.build("mlp-6-5-3", seed=size)
    scores = Score(validation, 0.1), Score(test, 0.2)
    return Entry(case, method, setting, 0, b"x" * size, 1.0, model, *scores, 1.5, 45, 40, shown)


class Shared:
    """What a `codebook.Compressed` has for a picture."""

    def __init__(self, model):
        names = ["fc1.weight", "fc2.weight"]
        self.clustered = Clustered(
            {}, dict(zip(names, [torch.tensor([0.0, -1, 2]), torch.tensor([0.0, 2])], strict=True))
        )


def bank():
    nets = [networks.build("mlp-6-5-5-3", seed=s) for s in range(2)]
    return Bank(nets, allocate(nets, torch.zeros(1, 6), clusters=1), seed=0).eval()


def tried(case="n"):
    """A file of each kind of picture."""
    shares = bank()
    return [
        entry("as trained", 900, 1.0, case=case),
        entry("soft weight-sharing", 30, 1.5, shown=tiny_run(), case=case, setting="tau 1"),
        entry("pruning + k-means", 60, 1.2, shown=Shared(None), case=case),
        entry("SuperWeights", 300, 1.1, model=shares.member(0), shown=shares, case=case),
        entry("SuperWeights, then soft weight-sharing", 25, 90.0, shown=tiny_run(), case=case, setting="<b>"),
    ]


def test_a_front_has_what_nothing_beats_as_pairs_compared_one_by_one():
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 8, (30, 2)).tolist()]
    straight = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    found = pictures.front(points)
    assert set(found) == straight
    assert found == sorted(found)


def test_every_file_stands_in_the_figure_and_the_far_ones_at_its_edge():
    own = tried()
    chosen = {e.method: [e] for e in own}
    (axes,) = plots.compression_fronts({"n": (own, chosen)}, 0.5).axes
    limit = axes.get_ylim()[1]
    assert 1.5 < limit < 90
    strong = {line.get_label(): line for line in axes.lines if line.get_markersize() == 8}
    assert set(strong) == {e.method for e in own}
    for e in own:
        line = strong[e.method]
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (e.bytes, min(e.test.error, limit))
        assert (line.get_color(), line.get_marker()) == style(e.method)
        assert (line.get_markerfacecolor() == "white") == (pictures.THEN in e.method)
    assert [(text.xy, text.get_text()) for text in axes.texts] == [((25, limit), "↑ 90 %")]
    faint = [line for line in axes.lines if line.get_markersize() == 4]
    assert [line.get_marker() == CARETUP for line in faint] == [e.test.error > limit for e in own]


def test_where_nothing_is_better_than_the_axis_end_no_front_is_drawn():
    own = [entry("as trained", 900, 1.0), entry("uniform grid", 60, 1.0)]
    (axes,) = plots.compression_fronts({"n": (own, {e.method: [e] for e in own})}, 0.5).axes
    assert {line.get_label() for line in axes.lines} >= {"as trained", "uniform grid"}


def test_bars_are_intervals_over_seeds():
    own = tried()[:3]
    errors = [1.0, 1.4, 1.9]
    seeds = [entry("pruning + k-means", size, error) for size, error in zip((50, 60, 70), errors, strict=True)]
    chosen = {"as trained": own[:1], "pruning + k-means": seeds}
    (axes,) = plots.compression_fronts({"n": (own, chosen)}, 0.5).axes
    (bar,) = [c for c in axes.collections if len(c.get_segments()) == 1 and len(c.get_segments()[0]) == 2]
    low, high = bar.get_segments()[0][:, 1]
    mean, half = interval(errors)
    assert (low, high) == pytest.approx((mean - half, mean + half))
    assert bar.get_segments()[0][:, 0] == pytest.approx(60)


def test_a_verdict_names_the_smallest_file_that_validation_allows():
    own = tried()
    chosen = {e.method: [e] for e in own}
    chosen["uniform grid"] = [entry("uniform grid", 5, 1.0, validation=2.6)]
    numbers = sum(p.numel() for p in own[0].model.parameters())
    assert pictures.verdict({m: chosen[m] for m in ("as trained", "uniform grid")}, 0.5).startswith(
        "within 0.5 points: as trained, "
    )
    assert pictures.verdict(chosen, 0.7) == f"within 0.7 points: uniform grid, {4 * numbers / 5:.0f} times smaller"


def test_weights_are_the_files_own_with_their_codebooks():
    e = tried()[2]
    drawn = pictures.weights(e)
    values = torch.cat([e.model.get_submodule(n).weight.detach().flatten() for n in ("fc1", "fc2")]).numpy()
    assert drawn.counts.sum() == len(values)
    assert drawn.centres.tolist() == [-1, 0, 2]
    for low, high, count in zip(drawn.edges, drawn.edges[1:], drawn.counts, strict=False):
        assert ((values >= low) & (values < high)).sum() == count


def test_weights_under_a_mixture_are_those_of_its_own_picture():
    e = tried()[1]
    f, drawn = plots.frame(e.shown), pictures.weights(e)
    np.testing.assert_array_equal(drawn.counts, f.counts)
    np.testing.assert_allclose(drawn.mixture, f.components.sum(0))


def test_the_frame_rings_the_chosen_file_and_draws_who_shares():
    own = tried()
    left, right = plots.compression_frame(own, own[3]).axes
    (ring,) = [line for line in left.lines if line.get_markersize() == 14]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (300, 1.1)
    plan = own[3].shown.plan
    assert len(right.texts) == sum(map(len, plan.clusters))
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["member 0", "member 1"]
    _, right = plots.compression_frame(own, own[1]).axes
    assert right.get_yscale() == "log"
    assert not right.texts
