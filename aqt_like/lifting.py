"""Lifting: variables of this package inside Flax's loops.

A lifted transform (`nn.scan`, `nn.vmap`, and with them `nn.remat_scan` and `nn.RNN`) passes on the collections that the
model names. Within `repeated_with_params`, transforms that map `"params"` along an axis also map `"formats"` along its
axis 0, so that each repetition of a layer has formats of its own; and what layers put into `"observed"` is given back:
stacked along a new first axis where `"params"` are mapped, along a new last axis where they are shared.

Flax has no hook for this: a private function of `flax.core.lift` is wrapped, and does what it did outside of the block.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from flax.core import lift
from flax.core.scope import in_filter

FORMATS = "formats"
OBSERVED = "observed"

_inside = threading.local()
_split_in_out_axes = lift._split_in_out_axes


def _with_ours(xs: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The axes that a transform maps collections along, on the way in and out, with those of this package."""
    if not getattr(_inside, "depth", 0):
        return _split_in_out_axes(xs)
    into, out = _split_in_out_axes(xs)
    mapped = next((axis for names, axis in into.items() if in_filter(names, "params")), None) is not None
    return {**({FORMATS: 0} if mapped else {}), **into}, {OBSERVED: 0 if mapped else -1, **out}


lift._split_in_out_axes = _with_ours


@contextlib.contextmanager
def repeated_with_params() -> Iterator[None]:
    """Within this block, loops pass on `"formats"` as they do `"params"`, and give back `"observed"`."""
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1
