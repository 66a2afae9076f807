"""A click log whose structure is known, in Criteo's format: what a model can reach on it is known as well."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.csv

from fliqs_jax.models.recommender import CATEGORIES, NUMBERS
from fliqs_jax.quality import auc

LATENT = 4  # channels of the vectors that categories interact by
CLICKS = 0.26  # as in Criteo's log
CHUNK = 100_000  # lines at once


def write_click_log(path: pathlib.Path, lines: int, seed: int = 0) -> float:
    """Writes a log of so many lines, and returns the AUC of the true probabilities: the most that any model can reach.

    The logit of a click is a sum of: a slope times the logarithm of each number; products of pairs of these; a weight
    for each value of each category; and products of vectors of pairs of categories, as in a factorisation machine.
    Categories have 4 to 20,000 values whose frequencies follow Zipf's law; a fifth of the numbers is missing.
    """
    rng = np.random.default_rng(seed)
    values = np.geomspace(4, 20_000, CATEGORIES).astype(int)
    slopes = rng.normal(0, 0.12, NUMBERS)
    products = rng.normal(0, 0.15, (NUMBERS, NUMBERS)) * (rng.random((NUMBERS, NUMBERS)) < 0.1)
    weights = [rng.normal(0, 0.1, count) for count in values]
    vectors = [rng.normal(0, 0.45, (count, LATENT)) for count in values]
    pairs = [rng.choice(CATEGORIES, 2, replace=False) for _ in range(12)]
    logits, labels, shift = [], [], None
    with path.open("wb") as file:
        for start in range(0, lines, CHUNK):
            count = min(CHUNK, lines - start)
            logarithms = rng.normal(0, 1, (count, NUMBERS))
            missing = rng.random((count, NUMBERS)) < 0.2
            known = np.where(missing, 0, logarithms)
            categories = [np.minimum(rng.zipf(1.2, count) - 1, most - 1) for most in values]
            logit = known @ slopes + np.einsum("ni,ij,nj->n", known, products, known)
            logit += sum(weight[category] for weight, category in zip(weights, categories, strict=True))
            for i, j in pairs:
                logit += np.sum(vectors[i][categories[i]] * vectors[j][categories[j]], axis=1)
            shift = np.log(CLICKS / (1 - CLICKS)) - logit.mean() if shift is None else shift
            logit += shift
            label = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(np.int8)
            numbers = np.where(missing, np.nan, np.round(10 * np.exp(logarithms)))
            columns = [
                pyarrow.array(label),
                *(pyarrow.array(column, pyarrow.float64(), from_pandas=True) for column in numbers.T),
                *(pyarrow.array([f"{value:x}" for value in category]) for category in categories),
            ]
            table = pyarrow.table(columns, names=[str(number) for number in range(len(columns))])
            options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
            pyarrow.csv.write_csv(table, file, options)
            logits.append(logit)
            labels.append(label)
    scores, clicks = jnp.asarray(np.concatenate(logits)), jnp.asarray(np.concatenate(labels))
    return float(auc.on_batch(scores[:, None], {"label": clicks}))
