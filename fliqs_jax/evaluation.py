"""What is done with a state outside of the search step: profiles, recalibration, logits and qualities."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from aqt_like import calibration, format_choice, interception, recalibration
from fliqs_jax.losses import Batch
from fliqs_jax.search import Search, SearchState, quantized_variables


def make_profile(search: Search) -> Callable[[SearchState, jax.Array, Iterable[Any]], SearchState]:
    """Makes `(state, genome, train_batches) -> state`, which profiles inputs anew under a genome, int32[D].

    The profiles that a search ends with are those of many networks. The function jits its pass over a batch and is not
    to be jitted itself.
    """

    @jax.jit
    def updated(state: SearchState, genome: jax.Array, profile: Any, batch: Batch) -> Any:
        variables = quantized_variables(search, state, genome, True) | {"calibration": profile}
        mutable = [*search.model.updated, "calibration"]
        with search.model.without_dropout():
            found = interception.apply_quantized(
                search.model, variables, batch["input"], train=True, mutable=mutable, quantizer=search.quantizer
            )
        return found[1]["calibration"]

    def profile(state: SearchState, genome: jax.Array, batches: Iterable[Any]) -> SearchState:
        found = interception.empty_calibration(search.paths)
        for batch in batches:
            found = updated(state, genome, found, batch)
        return state._replace(calibration=found)

    return profile


def make_recalibrate(search: Search) -> Callable[[dict[str, Any], Iterable[Any]], dict[str, Any]]:
    """Makes `(variables, train_batches) -> variables`, which recalibrates batch statistics.

    Variables are those of `quantized_variables`, or of a frozen network with its codes as `"formats"`. The statistics
    become plain means over the batches, with the formats in place; see `aqt_like.recalibration`. The function jits its
    pass over a batch and is not to be jitted itself. It raises `recalibration.StatisticsError` if statistics are not
    finite.
    """
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)

    @jax.jit
    def batch_sums(variables: dict[str, Any], batch: Batch) -> dict[str, recalibration.Sums]:
        def update(variables: dict[str, Any]) -> dict[str, Any]:
            with search.model.without_dropout():
                return apply(search.model, variables, batch["input"], train=True, mutable=search.model.updated)[1]

        return recalibration.batch_sums(update, variables)

    def recalibrate(variables: dict[str, Any], batches: Iterable[Any]) -> dict[str, Any]:
        sums = (batch_sums(variables, batch) for batch in batches)
        return {**variables, "batch_stats": recalibration.recalibrated(variables.get("batch_stats", {}), sums)}

    return recalibrate


def make_logits(search: Search) -> Callable[[dict[str, Any], Any], jax.Array]:
    """Makes `(variables, inputs) -> logits`, inference with the variables of `make_recalibrate`."""
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)

    def logits(variables: dict[str, Any], inputs: Any) -> jax.Array:
        return apply(search.model, variables, inputs, train=False)

    return logits


def make_evaluate(search: Search) -> Callable[[dict[str, Any], Batch], Any]:
    """Makes `(variables, batch) -> statistics` of the quality, of one batch; see `make_recalibrate`."""
    logits = make_logits(search)

    def evaluate(variables: dict[str, Any], batch: Batch) -> Any:
        return search.quality.statistics(logits(variables, batch["input"]), batch)

    return evaluate


def make_profile_clip_multiples(
    search: Search, criterion: calibration.Criterion
) -> Callable[[SearchState, Batch], SearchState]:
    """Makes `(state, train_batch) -> state`, which replaces the clip multiples by those that are best on the batch.

    This is switchable clipping with thresholds from real data (FLIQS, §3).
    """

    def profile(state: SearchState, batch: Batch) -> SearchState:
        with search.model.without_dropout():
            operands = interception.layer_operands(search.model, state.variables, batch["input"], train=True)
        multiples = format_choice.profiled_clip_multiples(search.paths, search.bank, operands, criterion)
        return state._replace(clip_multiples=multiples)

    return profile


def quality_over(
    search: Search,
    evaluate: Callable[[dict[str, Any], Any], Any],
    variables: dict[str, Any],
    batches: Iterable[Any],
) -> float:
    """Quality over all `batches`, rounded to six decimals; `evaluate` is the jitted function of `make_evaluate`.

    Raises:
      ValueError: there are no batches, or the quality is no finite number.
    """
    statistics = [jax.device_get(evaluate(variables, batch)) for batch in batches]
    if not statistics:
        raise ValueError("no examples to measure the quality on")
    value = float(search.quality.value(search.quality.joined(statistics)))
    if not math.isfinite(value):
        raise ValueError(f"the {search.quality.name} is {value}: expected a finite number")
    return round(value, 6)  # the precision of float32
