"""Work spread over a Ray cluster: the one that RAY_ADDRESS names, else one of this machine alone."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from launch.experiment import ConfigError

_SENT = ("apq_jax", "aqt_like", "fliqs_jax", "hwcost", "launch")  # nodes need requirements.txt, but not this project


def mapped(
    make: Callable[[Any], Callable[[Any], Any]], task: Any, items: list[Any], *, workers: int = 0
) -> Iterator[Any]:
    """`map(make(task), items)`, in order.

    Args:
      make: runs once in each worker; a function of a module of this project.
      task: what it is given, sent once to each node.
      items: one for each call.
      workers: how many; 0 for one per GPU of the cluster, or per node where there is none.

    Raises:
      ConfigError: Ray is not installed.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ConfigError("--workers=ray needs ray: pip install -r requirements-ray.txt") from error

    class Worker:
        def __init__(self, task: Any) -> None:
            self._call = make(task)

        def call(self, item: Any) -> Any:
            return self._call(item)

    ray.init(include_dashboard=False, runtime_env={"py_modules": [importlib.import_module(name) for name in _SENT]})
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(Worker).options(num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0)
        sent = ray.put(task)
        pool = ActorPool([actor.remote(sent) for _ in range(workers or gpus or len(ray.nodes()))])
        yield from pool.map(lambda worker, item: worker.call.remote(item), items)
    finally:
        ray.shutdown()
