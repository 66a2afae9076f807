"""Commands on top of the searches, and what they do, from Python: `run(prepare_experiment(load_config("fliqs_digits")),
workdir, console)`. Public is what `__all__` names; it is loaded when it is asked for, so that a command loads only what
it needs.
"""

import importlib
from typing import Any

_HOMES = {
    "load_config": "launch.config_files",
    "prepare_experiment": "launch.training.experiment",
    "run": "launch.training.runs",
}
__all__ = list(_HOMES)
__path__ = [*__path__, f"{__path__[0]}/former_names"]  # python -m launch.OLD_NAME


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
