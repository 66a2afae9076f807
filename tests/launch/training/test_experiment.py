import numpy as np
import pytest

from launch.training import finished, trial_run
from launch.training.experiment import prepare_experiment
from launch.training.settings import ConfigError


def is_power_of_two(scale):
    return bool((np.frexp(np.asarray(scale))[0] == 0.5).all())


def test_scales_of_weights_and_inputs_are_powers_of_two(uninterrupted):
    """Of the network that a run with this setting would freeze, under the weights of another run."""
    experiment = finished.read_experiment(uninterrupted, scales="power_of_two")
    networks = finished.Networks(experiment, trial_run.open_data(experiment))
    state = finished.read_weights(uninterrupted, experiment)
    frozen = networks.frozen(state, finished.read_genome_of(uninterrupted, experiment))
    for path, layer in finished.read_network(uninterrupted, experiment).layers.items():
        ours = frozen.layers[path]
        if ours.weights.packed.format == "bf16":
            continue
        assert is_power_of_two(ours.weights.packed.scale), path
        assert is_power_of_two(ours.input_scale), path
        assert not is_power_of_two(layer.weights.packed.scale), path
        ratio = ours.weights.packed.scale / layer.weights.packed.scale
        assert ((ratio > 0.5) & (ratio < 2)).all()


def test_products_have_scales_of_their_own(tiny_config):
    tiny_config.scales, tiny_config.products = "power_of_two", True
    with pytest.raises(ConfigError, match=r"scales='power_of_two': products=True: expected False"):
        prepare_experiment(tiny_config)
