"""The two quantisers of APQ on the digits: the same networks at few bits, fine-tuned under each.

    python -m benchmarks.apq_quantizers [--workdir=runs/apq]     (five CPU minutes with all training)

Nine random networks of the once-for-all network of `configs/apq_digits.py` are fine-tuned for eight times the steps of
a record and measured on the test images (APQ, §4, Eq. 5): three with 4 bits everywhere, three with 2 or 4 as drawn for
each convolution, three with 2. Seeds change the order of the training examples. The results go to
results/apq_quantizers.json beside this file.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from rich.console import Console

from apq_jax import subnet_accuracy
from apq_jax.architecture_space import BIT_DECISIONS, ArchitectureSpace
from apq_jax.subnet_accuracy import QUANTIZERS
from configs import apq_digits
from fliqs_jax import losses
from launch.apq import record_task, train_supernet
from launch.apq.pipeline import Pipeline, prepare_pipeline

RESULTS = pathlib.Path(__file__).parent / "results" / "apq_quantizers.json"
NETWORKS, SEEDS, STEPS = 9, (0, 1), 80
OPTIONS = {"4": (1, 1), "2 and 4": (0, 1), "2": (0, 0)}  # the first and the last of bits, in turn over the networks


def few_bits(space: ArchitectureSpace, number: int) -> np.ndarray:
    """A random genome, int32[D], whose bits are within `OPTIONS`."""
    genome = np.array(space.sample(jax.random.key(number)))
    first, last = list(OPTIONS.values())[number % len(OPTIONS)]
    for place, decision in enumerate(space.search_space.decisions):
        if decision.name.rpartition(".")[2] in BIT_DECISIONS:
            genome[place] = np.clip(genome[place], first, last)
    return np.asarray(space.made_valid(genome))


def measure(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Test accuracy of each network under each quantiser, a value per seed, and CPU seconds without compilation."""
    state, settings = train_supernet.read_supernet(pipeline), pipeline.config.supernet
    config = pipeline.config.copy_and_resolve_references()
    config.records.fine_tuning_steps = STEPS
    by_seed = []
    for seed in SEEDS:
        config.seed = seed
        seeded = dataclasses.replace(pipeline, config=config)
        dataset = seeded.open_data()
        test = list(dataset.eval_batches("test", batch_size=config.records.batch_size))
        by_seed.append(record_task.read_batches(seeded, dataset)._replace(validation=test))
    space = pipeline.space
    assert isinstance(space, ArchitectureSpace)
    genomes = [few_bits(space, number) for number in range(NETWORKS)]
    rows: list[dict[str, Any]] = [{"choices": space.search_space.decode(genome)} for genome in genomes]
    for name, clipping in QUANTIZERS.items():
        accuracy = subnet_accuracy.make_quantized_accuracy(
            space,
            clipping=clipping,
            optimizer=optax.sgd(config.records.fine_tuning_rate, momentum=0.9),
            loss=losses.cross_entropy(settings.label_smoothing),
        )
        accuracy(state.params, state.batch_stats, by_seed[0], jnp.asarray(genomes[0]))  # compiles
        for genome, row in zip(genomes, rows, strict=True):
            start = time.process_time()
            row[name] = [accuracy(state.params, state.batch_stats, data, jnp.asarray(genome)) for data in by_seed]
            row[f"{name}_cpu_seconds"] = round((time.process_time() - start) / len(SEEDS), 2)
    return rows


def markdown(document: dict[str, Any]) -> str:
    """The Markdown table of docs/apq.md."""
    lines = ["| bits | gaussian, per channel | least divergence, per tensor (Eq. 5) |", "|---|---|---|"]
    for number, bits in enumerate(OPTIONS):
        rows = document["networks"][number :: len(OPTIONS)]
        cells = [_mean_and_range([value for row in rows for value in row[name]]) for name in QUANTIZERS]
        lines.append(f"| {bits} | {' | '.join(cells)} |")
    seconds = [float(np.mean([row[f"{name}_cpu_seconds"] for row in document["networks"]])) for name in QUANTIZERS]
    lines.append(f"| CPU seconds a network | {' | '.join(f'{value:.1f}' for value in seconds)} |")
    return "\n".join(lines) + "\n"


def _mean_and_range(accuracies: list[float]) -> str:
    least, mean, most = (100 * float(each) for each in (min(accuracies), np.mean(accuracies), max(accuracies)))
    return f"{mean:.1f} % ({least:.1f} – {most:.1f})"


def main() -> None:
    """Trains the once-for-all network unless it is there, measures, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/apq"))
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    pipeline = prepare_pipeline(apq_digits.get_config(), arguments.workdir, Console())
    pipeline.claim()
    train_supernet.run(pipeline)
    document = {
        "command": "python -m benchmarks.apq_quantizers",
        "fine_tuning_steps": STEPS,
        "seeds": SEEDS,
        "networks": measure(pipeline),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))


if __name__ == "__main__":
    main()
