import itertools
import math

import numpy as np
import pytest
from scipy import stats

from aqt_like.formats import parse_format
from hwcost import allocation
from hwcost.costs import COSTS
from hwcost.format_plan import format_plan
from hwcost.layer_spec import LayerSpec
from hwcost.layer_variants import Architecture, LayerVariants, resized
from hwcost.space import Decision, SearchSpace

INT4, INT8 = (parse_format(name) for name in ("int4", "int8"))
BIT_OPERATIONS = COSTS["bit_operations"]
SPACE = SearchSpace(
    (Decision("a.width", ("0.5", "1", "2")), Decision("b.kernel", ("3", "5")), Decision("depth", ("1", "2")))
)
BASE = {"a.width": "1", "b.kernel": "3", "depth": "1"}


def conv(path, ins, outs, size, groups=1):
    return LayerSpec.square_convolution(path, ins, outs, size=8, output_size=8, kernel=size, stride=1, groups=groups)


def plan():
    """Layers a, b and c: a chooses its channels, which the depthwise b has too, b its kernel; c is there or not."""
    a, b, c = conv("a", 3, 8, 1), conv("b", 8, 8, 5, groups=8), conv("c", 8, 4, 1)
    widths, kernels = (2, 4, 8), (3, 5)
    variants = {
        "a": LayerVariants(
            ("a.width",),
            tuple(resized(a, in_channels=3, out_channels=n, kernel=0) for n in widths),
            np.arange(3, dtype=np.int32),
        ),
        "b": LayerVariants(
            ("a.width", "b.kernel"),
            tuple(resized(b, in_channels=n, out_channels=n, kernel=k) for n in widths for k in kernels),
            np.arange(6, dtype=np.int32).reshape(3, 2),
        ),
        "c": LayerVariants(("depth",), (None, c), np.arange(2, dtype=np.int32)),
    }
    return format_plan((a, b, c), (INT4, INT8), architecture=Architecture(SPACE, BASE, variants, lambda _: {}))


def genome_of(plan, **choices):
    usual = {"a.format": "int4", "b.format": "int4", "c.format": "int4", **BASE}
    return plan.space.encode(usual | {name.replace("_", "."): option for name, option in choices.items()})


def bit_operations(bits, *, width, kernel, depth):
    """Bit operations of the three layers, written out."""
    of_a, of_b, of_c = bits
    return 64 * (of_a**2 * 3 * width + of_b**2 * kernel**2 * width + (depth == 2) * of_c**2 * 8 * 4)


def test_shares_of_factors_are_their_logarithms():
    factors = {"bits": 4.0, "channels": 0.5, "kernels": 25 / 9}
    shares = allocation.log_shares(lambda changed: 7.0 * math.prod(factors[part] for part in changed), list(factors))
    assert shares == pytest.approx({part: math.log(factor) for part, factor in factors.items()})
    with pytest.raises(ValueError, match="with nothing as found, the network costs 0"):
        allocation.log_shares(lambda changed: float(len(changed)), ["bits"])


def test_shares_are_shapley_values_by_their_weights_over_subsets():
    rng = np.random.default_rng(0)
    parts = ["bits", "channels", "kernels", "depth"]
    costs = {frozenset(subset): rng.uniform(1, 9) for n in range(5) for subset in itertools.combinations(parts, n)}
    shares = allocation.log_shares(costs.__getitem__, parts)
    for part in parts:
        expected = 0.0
        for subset, cost in costs.items():
            if part not in subset:
                weight = math.factorial(len(subset)) * math.factorial(3 - len(subset)) / math.factorial(4)
                expected += weight * math.log(costs[subset | {part}] / cost)
        assert shares[part] == pytest.approx(expected)
    assert sum(shares.values()) == pytest.approx(math.log(costs[frozenset(parts)] / costs[frozenset()]))


def test_the_cost_of_a_network_is_split_among_what_was_chosen():
    ours = plan()
    genome = genome_of(ours, a_format="int8", c_format="int8", a_width="2", b_kernel="5", depth="2")
    shares = allocation.allocation(ours, BIT_OPERATIONS, genome, INT4)

    def cost(changed):
        return bit_operations(
            (8, 4, 8) if "bits" in changed else (4, 4, 4),
            width=8 if "channels" in changed else 4,
            kernel=5 if "kernels" in changed else 3,
            depth=2 if "depth" in changed else 1,
        )

    assert shares == pytest.approx(allocation.log_shares(cost, ["bits", "channels", "kernels", "depth"]))
    assert ours.base_workload[1].kernel == (3, 3)
    assert BIT_OPERATIONS.uniform(ours.base_workload, INT4) == cost(())
    # A genome with the base's sizes differs by its bits alone, all in the unit by nothing.
    shares = allocation.allocation(ours, BIT_OPERATIONS, genome_of(ours, b_format="int8"), INT4)
    ratio = bit_operations((4, 8, 4), width=4, kernel=3, depth=1) / cost(())
    assert shares == pytest.approx({"bits": math.log(ratio), "channels": 0, "kernels": 0, "depth": 0})
    assert set(allocation.allocation(ours, BIT_OPERATIONS, genome_of(ours), INT4).values()) == {0}
    plain = format_plan(ours.base_workload, (INT4, INT8))
    alone = allocation.allocation(plain, BIT_OPERATIONS, np.ones(2, np.int32), INT4)
    assert alone == pytest.approx({"bits": math.log(4)})


def test_decisions_are_of_what_they_change_in_layers():
    architecture = plan().architecture
    found = [allocation.part_decided(architecture, name) for name in (*BASE, "of no layer")]
    assert found == ["channels", "kernels", "depth", "channels"]


def test_rank_correlations_are_over_layers_whose_sizes_are_searched():
    bits, widths = (4, 8, 4, 8, 8), (2, 0.5, 1, 1, 0.5)
    layers = [conv(f"l{i}", 4, 8, 1) for i in range(5)]
    options = (0.5, 1, 2)
    space = SearchSpace(tuple(Decision(f"l{i}.width", ("0.5", "1", "2")) for i in range(5)))
    variants = {
        layer.path: LayerVariants(
            (f"{layer.path}.width",),
            tuple(resized(layer, in_channels=4, out_channels=int(4 * w), kernel=0) for w in options),
            np.arange(3, dtype=np.int32),
        )
        for layer in layers
    }
    architecture = Architecture(space, dict.fromkeys((d.name for d in space.decisions), "1"), variants, lambda _: {})
    ours = format_plan((*layers, conv("head", 8, 2, 1)), (INT4, INT8), architecture=architecture)
    genome = np.asarray([(4, 8).index(b) for b in (*bits, 8)] + [options.index(w) for w in widths], np.int32)
    (found,) = allocation.rank_correlations(ours, genome).values()

    def ranks(values):
        return [np.mean([sorted(values).index(v) + k for k in range(values.count(v))]) for v in values]

    expected = np.corrcoef(ranks(bits), ranks(widths))[0, 1]
    assert expected < -0.7
    assert found == (pytest.approx(expected), 5)
    assert found.rho == pytest.approx(stats.spearmanr(bits, widths).statistic)
    genome[:6] = 1
    assert allocation.rank_correlations(ours, genome) == {"channels": (None, 5)}
    assert allocation.rank_correlations(plan(), genome_of(plan(), b_format="int8")) == {
        "channels": (None, 2),
        "kernels": (None, 1),
    }
    assert allocation.rank_correlations(format_plan(layers, (INT4, INT8)), np.zeros(5, np.int32)) == {}
