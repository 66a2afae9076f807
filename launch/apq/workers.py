"""Workers for independent items of work: this process, or a Ray cluster."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from launch.training.settings import ConfigError

# Packages sent to the nodes of a cluster, which need requirements.txt installed, but not this project.
_SENT_PACKAGES = ("apq_jax", "aqt_like", "fliqs_jax", "hwcost", "launch")

Mapper = Callable[[Callable[[Any], Callable[[Any], Any]], Any, list[Any]], Iterator[Any]]
"""`(make, task, items)` → results of `make(task)` for each item, in order; they do not depend on the workers."""


def in_process(make: Callable[[Any], Callable[[Any], Any]], task: Any, items: list[Any]) -> Iterator[Any]:
    """Results of `make(task)` for each item, computed in this process one after the other."""
    return map(make(task), items)


@contextlib.contextmanager
def started(name: str) -> Iterator[Mapper]:
    """The workers called `name`, shut down at the end of the context.

    Args:
      name: `process`; or `ray`, one worker per GPU of the cluster at RAY_ADDRESS, or per node without GPUs; or `ray:N`,
        N workers of that cluster. Without RAY_ADDRESS a cluster of this machine is started. That must happen before
        JAX starts, since JAX's threads do not survive Ray's forks.

    Raises:
      ConfigError: the name is unknown, or Ray is not installed.
    """
    kind, _, count = name.partition(":")
    if name == "process":
        yield in_process
        return
    if kind != "ray" or not (name == "ray" or (count.isdigit() and int(count))):
        raise ConfigError(f"--workers={name}: expected process, ray or ray:N")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--workers={name} needs ray: pip install -r requirements-ray.txt") from error
    sent = [str(pathlib.Path(__file__).parents[2] / name) for name in _SENT_PACKAGES]
    ray.init(include_dashboard=False, runtime_env={"py_modules": sent})
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
    task_reference = ray.put(task)
    pool = ActorPool([actor.remote(task_reference) for _ in range(workers or gpus or len(ray.nodes()))])
    return pool.map(lambda worker, item: worker.call.remote(item), items)
