"""Rematerialisation: blocks of a network whose values are computed again in the backward pass instead of being kept.

Training then keeps what blocks get, and the values within one block at a time, for about a third more computation
(Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost"). Networks stay plain Flax: blocks are found by
their paths, and are those of any network.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from fliqs_jax.models.calling import CalledModel


@contextlib.contextmanager
def rematerialised(expression: str) -> Iterator[None]:
    """Within this block, calls of the outermost modules whose path the expression matches are rematerialised.

    Args:
      expression: regular expression, which `re.search` looks for in paths such as `stage1_block1`; none if empty.
    """
    if not expression:
        yield
        return
    matches, inside = re.compile(expression).search, []

    def intercept(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)  # empty: the model itself
        if inside or context.method_name != "__call__" or not (path and matches(path)):
            return call(*args, **kwargs)
        leaves, structure = jax.tree.flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]  # others are no values

        told: list[Any] = []  # what the block gives, without its arrays

        def block(module: nn.Module, *arrays: jax.Array) -> list[jax.Array]:
            given = dict(zip(places, arrays, strict=True))
            args, kwargs = jax.tree.unflatten(structure, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
            inside.append(module)
            try:
                results, form = jax.tree.flatten(module(*args, **kwargs))
            finally:
                inside.pop()
            told[:] = form, [None if isinstance(leaf, jax.Array) else leaf for leaf in results]
            return [leaf for leaf in results if isinstance(leaf, jax.Array)]

        computed = iter(nn.remat(block)(context.module, *(leaves[place] for place in places)))
        form, others = told
        return jax.tree.unflatten(form, [next(computed) if other is None else other for other in others])

    with nn.intercept_methods(intercept):
        yield


def check_expression(expression: str, model: CalledModel, inputs: Any) -> None:
    """Checks that there are modules to rematerialise, by tracing the model.

    Raises:
      ValueError: the expression is none, or matches no module; the message has the paths that there are.
    """
    paths: dict[str, None] = {}

    def note(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        paths["/".join(context.module.path)] = None
        return call(*args, **kwargs)

    if not expression:
        return
    with nn.intercept_methods(note):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x), inputs)
    try:
        if any(map(re.compile(expression).search, filter(None, paths))):
            return
        why = f"it matches none of {', '.join(path for path in paths if path and '/' not in path)}"
    except re.error as error:
        why = str(error)
    raise ValueError(f"rematerialise={expression!r}: expected a regular expression over paths of modules: {why}")
