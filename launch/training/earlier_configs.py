"""Configs of runs of earlier versions, as today's settings."""

from typing import Any

from launch.training.compute import DEFAULT, FLOAT32

_ADDED = {"compute": FLOAT32, "precision": DEFAULT, "targets": []}
_LATER = {  # of all configs that have controllers
    "architecture": {},
    "output": "",
    "apply": "",
    "init_prefix": "",
    "init_anew": [],
    "activations": FLOAT32,
    "rematerialise": "",
    "ema": 0.0,
    "scales": "float32",
}
_OF_DATA = {"decoder": "pillow", "on_bad_record": "error"}  # added later
_NOT_WITHIN = {"within_budget": False}
_TO_REINFORCE = {  # Settings of the only controller that there was, and what they are called now.
    "reward": "reward",
    "gamma": "gamma",
    "policy_learning_rate": "learning_rate",
    "policy_momentum": "momentum",
    "baseline_momentum": "baseline_momentum",
    "cost_samples": "cost_samples",
    "entropy_schedule": "entropy_schedule",
    "entropy_end": "entropy_end",
    "warmup_fraction": "warmup_fraction",
}


def of_today(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run of any version, as parsed from JSON, with the settings of today; others are left as is."""
    if "data" in config:
        config = {**config, "data": {**_OF_DATA, **config["data"]}}
    if "policy" not in config:
        return {"architecture": {}, "formats": "", **config}
    if "controller" in config:
        reinforce = _NOT_WITHIN | config["controller"].get("reinforce", {})
        return {
            **_LATER,
            **config,
            "clip": _clip(config),
            "controller": {**config["controller"], "reinforce": reinforce},
        }
    moved = {new: config[old] for old, new in _TO_REINFORCE.items() if old in config}
    kept = {key: value for key, value in config.items() if key not in _TO_REINFORCE}
    return {
        **_LATER,
        **_ADDED,
        **kept,
        "clip": _clip(config),
        "controller": {
            "reinforce": {**moved, **_NOT_WITHIN, "paired": False, "freeze_fraction": 1.0},
            "fisher": {"examples": 8, "freeze_fraction": 0.25},
        },
    }


def _clip(config: dict[str, Any]) -> dict[str, Any]:
    return {"input_multiple": 0.0, **config.get("clip", {})}
