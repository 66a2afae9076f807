"""Commands of both searches, and their Python interface.

    run(prepare_experiment(load_config("fliqs_digits")), workdir, console)

`__all__` lists the public names. They are imported on first access, so a command imports only what it needs.
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
