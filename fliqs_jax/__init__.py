"""FLIQS: one-shot search for the number format of every layer while the network trains.

`__all__` lists the public names. They are imported on first access: APQ uses `fliqs_jax.models` without this search.
"""

import importlib
from typing import Any

_HOMES = {
    "LOSSES": "fliqs_jax.losses",
    "POLICIES": "fliqs_jax.policy",
    "Policy": "fliqs_jax.policy",
    "QUALITIES": "fliqs_jax.quality",
    "Quality": "fliqs_jax.quality",
    "REWARDS": "fliqs_jax.reward",
    "Search": "fliqs_jax.search",
    "SearchState": "fliqs_jax.search",
    "init_policy": "fliqs_jax.policy",
    "init_state": "fliqs_jax.search",
    "make_evaluate": "fliqs_jax.evaluation",
    "make_recalibrate": "fliqs_jax.evaluation",
    "make_search_step": "fliqs_jax.search",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
