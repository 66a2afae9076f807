"""Who does work that falls into independent parts: this process, or a Ray cluster."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from launch.training.experiment import ConfigError

_SENT = ("apq_jax", "aqt_like", "fliqs_jax", "hwcost", "launch")  # nodes need requirements.txt, but not this project

Mapped = Callable[[Callable[[Any], Callable[[Any], Any]], Any, list[Any]], Iterator[Any]]
"""`(make, task, items)` → what `make(task)` gives for each item, in order; the same whoever does it."""


def in_process(make: Callable[[Any], Callable[[Any], Any]], task: Any, items: list[Any]) -> Iterator[Any]:
    """One after the other."""
    return map(make(task), items)


@contextlib.contextmanager
def started(name: str) -> Iterator[Mapped]:
    """Workers by name.

    Args:
      name: `process`; or `ray` for one worker per GPU of the cluster that RAY_ADDRESS names, or per node where there is
        no GPU; or `ray:N` for N of them. Without RAY_ADDRESS a cluster of this machine alone is started, which has to
        happen before JAX starts: its threads do not survive Ray's forks.

    Raises:
      ConfigError: unknown workers, or Ray is not installed.
    """
    kind, _, count = name.partition(":")
    if name == "process":
        yield in_process
        return
    if kind != "ray" or not (count.isdigit() or name == "ray"):
        raise ConfigError(f"--workers={name}: expected process, ray or ray:N")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--workers={name} needs ray: pip install -r requirements-ray.txt") from error
    ray.init(include_dashboard=False, runtime_env={"py_modules": [importlib.import_module(name) for name in _SENT]})
    try:
        yield partial(_over_ray, int(count or 0))
    finally:
        ray.shutdown()


def _over_ray(workers: int, make: Callable[[Any], Callable[[Any], Any]], task: Any, items: list[Any]) -> Iterator[Any]:
    import ray
    from ray.util import ActorPool

    class Worker:
        def __init__(self, task: Any) -> None:
            self._call = make(task)

        def call(self, item: Any) -> Any:
            return self._call(item)

    gpus = int(ray.cluster_resources().get("GPU", 0))
    actor = ray.remote(Worker).options(num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0)
    sent = ray.put(task)
    pool = ActorPool([actor.remote(sent) for _ in range(workers or gpus or len(ray.nodes()))])
    return pool.map(lambda worker, item: worker.call.remote(item), items)
