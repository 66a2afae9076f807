"""The searches of architectures have the decisions that their docstrings tell."""

import pytest

from aqt_like.formats import format_space, parse_format
from configs import fliqnas_cifar10, fliqnas_criteo, fliqnas_imagenet
from fliqs_jax import models
from fliqs_jax.models import elastic
from hwcost.costs import COSTS
from hwcost.format_plan import format_plan
from hwcost.genome_file import decides_format
from hwcost.workload import trace


@pytest.mark.parametrize(
    ("module", "shape", "classes", "of_formats", "of_architecture"),
    [
        (fliqnas_cifar10, (12, 12, 3), 10, 32, 10 + 10),
        (fliqnas_imagenet, (224, 224, 3), 1000, 53, 17 + 17),
        (fliqnas_criteo, (39,), 1, 9, 4 + 4),
    ],
)
def test_decisions(module, shape, classes, of_formats, of_architecture):
    config = module.get_config()
    settings = config.model.to_dict()
    name = settings.pop("name")
    base = models.create(name, classes=classes, **settings)
    family = models.family(name, base, config.architecture.to_dict())
    layers = trace(family.largest, shape, train=False)
    plan = format_plan(layers, format_space(config.formats), (), elastic.architecture(family, layers))
    formats = [decides_format(decision.name) for decision in plan.space.decisions]
    assert (sum(formats), len(formats) - sum(formats)) == (of_formats, of_architecture)
    assert plan.base_workload == trace(base, shape, train=False)
    if module is fliqnas_imagenet:  # 2.70 × it are the paper's 13 billion
        assert COSTS["bit_operations"].uniform(plan.base_workload, parse_format("int4")) == pytest.approx(4.81e9, 2e-3)
    genome = plan.uniform_genome("int8")
    assert tuple(plan.layers_of(genome).values()) == plan.base_workload
    assert plan.encode(plan.named(genome)).tolist() == genome.tolist()
