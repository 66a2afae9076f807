"""Lifting: variables of this package inside Flax's loops.

A lifted transform (`nn.scan`, `nn.vmap`, and with them `nn.remat_scan` and `nn.RNN`) passes on the collections that the
model names. Within `repeated_with_params`, transforms that map `"params"` along an axis also map `"formats"` along its
axis 0, so that each repetition of a layer has formats of its own; those that share parameters share formats. What
layers put into `OBSERVED` is given back: stacked along a new first axis where `"params"` are mapped, along a new last
axis where they are shared. The two are not among the variables that `nn.map_variables` maps (as in `nn.WeightNorm`,
which maps all). `nn.jit` traces each call anew, since other calls compute otherwise.

Flax has no hook for this: functions of `flax.core.lift` are wrapped, and do what they did outside of the block.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flax.core import lift
from flax.core.scope import in_filter, subtract_filters, union_filters

FORMATS = "formats"
OBSERVED = "observed by aqt_like"  # A name that no model uses.

_inside = threading.local()
_split_in_out_axes = lift._split_in_out_axes
_hashable_filter = lift._hashable_filter
_map_variables = lift.map_variables
_pack = lift.pack


def _with_ours(xs: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The axes that a transform maps collections along, on the way in and out, with those of this package."""
    if not getattr(_inside, "depth", 0):
        return _split_in_out_axes(xs)
    into, out = _split_in_out_axes(xs)
    axes = [axis for names, axis in into.items() if in_filter(names, "params")]
    mapped = bool(axes) and axes[0] is not None
    # `nn.vmap` shares parameters along the axis None, `nn.scan` by another argument (`_with_broadcast_formats`).
    formats = {FORMATS: 0 if mapped else None} if axes else {}
    return {**formats, **into}, {OBSERVED: 0 if mapped else -1, **out}


def _with_broadcast_formats(
    fn: Callable[..., Any],
    in_variable_filters: Sequence[Any],
    out_variable_filters: Sequence[Any],
    rng_filters: Sequence[Any],
    name: Any = None,
    enable_kwargs: bool = False,
) -> Callable[..., Any]:
    """`lift.pack`, which tells a scan that shares parameters to share formats as well."""
    into = in_variable_filters
    if name == "scan" and getattr(_inside, "depth", 0) and not any(in_filter(names, FORMATS) for names in into):
        into = (union_filters(into[0], FORMATS), *into[1:])
    return _pack(fn, into, out_variable_filters, rng_filters, name, enable_kwargs)


def _unlike_all_others(x: Any) -> Any:
    """The part of `nn.jit`'s cache key that is made of mutable collections: within the block, of this call only."""
    key = _hashable_filter(x)
    return (key, object()) if getattr(_inside, "depth", 0) else key


def _without_ours(fn: Callable[..., Any], mapped_collections: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """`lift.map_variables`, which within the block leaves the collections of this package as they are."""
    if getattr(_inside, "depth", 0):
        mapped_collections = subtract_filters(mapped_collections, (FORMATS, OBSERVED))
    return _map_variables(fn, mapped_collections, *args, **kwargs)


lift._split_in_out_axes = _with_ours
lift._hashable_filter = _unlike_all_others
lift.pack = _with_broadcast_formats
lift.map_variables = functools.wraps(_map_variables)(_without_ours)


@contextlib.contextmanager
def repeated_with_params() -> Iterator[None]:
    """Within this block, loops pass on `"formats"` as they do `"params"`, and give back `OBSERVED`."""
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1


def loop_shapes(boundary: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How often loops repeated a layer with parameters of its own, and ran it with shared ones, as two shapes.

    Args:
      boundary: shape of an array of shape (0,) that the layer put into `OBSERVED`, as loops gave it back: its axis of
        size 0 lies between the two.
    """
    split = boundary.index(0)
    return boundary[:split], boundary[split + 1 :]
