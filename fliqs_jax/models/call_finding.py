"""Finding how a model is called, from its signature and from calls on an example that are traced."""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
from flax import errors
from flax.core.scope import Scope

from fliqs_jax.models.calling import (
    ARGUMENT,
    BATCH_STATS,
    FIELD,
    FLAGS,
    PARAMS,
    Adapter,
    CalledModel,
    CallError,
    Flag,
    arguments_of,
    logits_place,
)
from hwcost import registry

_RESTING = {nn.BatchNorm: "use_running_average", nn.Dropout: "deterministic"}  # layers with a mode, and its flag
_LACKING = (  # errors for want of a name, their words, and the field of a model that has such names
    (NameError, r"unbound axis name: (\w+)", "axis_names"),
    (errors.InvalidRngError, r'PRNG for "(\w+)"', "inference_streams"),
)


def called(
    module: nn.Module,
    inputs: Any = None,
    *,
    output: str = "",
    adapter: Adapter | None = None,
    draws: tuple[str, ...] | None = None,
) -> CalledModel:
    """How a module is called: its mode flags, and what calls on an example show. Nothing is computed.

    Args:
      module: any linen module.
      inputs: arrays, or shapes and types, of a batch of inputs: an array is the first argument, a tuple all of them, a
        dict those by name, or one argument if they have no such names; arguments without default that it lacks are
        None. Without inputs, the model is taken to draw no random numbers, and to return logits alone.
      output: see `CalledModel`.
      adapter: see `CalledModel`.
      draws: of a model of ours, which returns logits alone, the names of the random numbers that it draws in training:
        it is traced once. None for any other model.

    Raises:
      CallError: the model cannot be called so, or returns no logits.
    """
    flags = tuple(flag for flag in _flags(module) if not adapter or flag.holder != ARGUMENT)
    model = CalledModel(module, flags, output, adapter)
    if inputs is None:
        return model
    if isinstance(inputs, Mapping) and (taken := [flag.name for flag in flags if flag.name in inputs]):
        raise CallError(f"the inputs hold {', '.join(taken)}, which is the flag of the mode in the model: rename one")
    return _tried(model, inputs) if draws is None else _plain(model, inputs, draws)


def find_adapter(name: str) -> Adapter | None:
    """The adapter that a user names as `package.module:function`; None for an empty name.

    Raises:
      ValueError: there is no such function, or it takes other arguments.
    """
    return registry.lookup_function("apply", name, {}, ("model", "inputs", "train")) if name else None


def _flags(module: nn.Module) -> tuple[Flag, ...]:
    """The mode flags of a module: arguments of its call, else its fields, else those of dataclasses in its fields."""
    arguments = inspect.signature(type(module).__call__).parameters
    if found := tuple(Flag(name, ARGUMENT) for name in FLAGS if name in arguments):
        return found
    fields = {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}
    if found := tuple(Flag(name, FIELD) for name in FLAGS if _is_flag(fields.get(name, ""))):
        return found
    return tuple(
        Flag(name, holder)
        for holder, value in fields.items()
        if dataclasses.is_dataclass(value) and not isinstance(value, nn.Module | type)
        for name in FLAGS
        if _is_flag(getattr(value, name, ""))
    )


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


class _Seen:
    """What a traced call shows.

    Attributes:
      streams: names of the random numbers that were asked for; an ordered set.
      resting: whether each call of a layer with a mode was in inference mode, by kind.
      place: where the logits are.
    """

    def __init__(self) -> None:
        self.streams: dict[str, None] = {}
        self.resting: dict[type, list[bool]] = {kind: [] for kind in _RESTING}
        self.place = ""

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Notes what is called and asked for in the block. Flax has no hook for random streams."""
        make, has = Scope.make_rng, Scope.has_rng

        def make_rng(scope: Scope, name: str = PARAMS) -> jax.Array:
            self.streams[name] = None
            return make(scope, name)

        def has_rng(scope: Scope, name: str) -> bool:
            if name != PARAMS:
                self.streams[name] = None
            return has(scope, name)

        with (
            mock.patch.object(Scope, "make_rng", make_rng),
            mock.patch.object(Scope, "has_rng", has_rng),
            nn.intercept_methods(self._note),
        ):
            yield

    def _note(self, call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        for kind, flag in _RESTING.items():
            if isinstance(context.module, kind) and context.method_name == "__call__":
                given = args[1] if len(args) > 1 else kwargs.get(flag)
                rests = getattr(context.module, flag) if given is None else given
                if getattr(context.module, "rate", 1):
                    self.resting[kind].append(bool(rests))
        return call(*args, **kwargs)

    def all_rest(self, kind: type) -> bool:
        """Whether there are layers of a kind, all in inference mode."""
        return bool(self.resting[kind]) and all(self.resting[kind])


def _plain(model: CalledModel, inputs: Any, draws: tuple[str, ...]) -> CalledModel:
    """The model with its logits, and what it draws."""

    inference: dict[str, Any] = {flag.name: not FLAGS[flag.name] for flag in model.flags}

    def logits(each: CalledModel, x: Any) -> Any:
        return each.module.init_with_output(jax.random.key(0), x, **inference)[0]

    model = dataclasses.replace(model, logits=_traced(model, logits, inputs)[1], train_streams=draws)
    return dataclasses.replace(model, told=_told(model, inputs, ""))


def _tried(model: CalledModel, inputs: Any) -> CalledModel:
    """The model with what its calls on inputs show."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), inputs)
    model, variables = _traced(model, lambda each, x: each.init(jax.random.key(0), x), shapes)
    statistics = bool(variables.get(BATCH_STATS))
    further = [name for name in variables if name not in (PARAMS, BATCH_STATS)]
    model = dataclasses.replace(model, has_statistics=statistics)
    seen = {train: _Seen() for train in (False, True)}
    found: Any = {}
    for train, noted in seen.items():

        def call(
            each: CalledModel, x: Any, variables: Any, train: bool = train, noted: _Seen = noted
        ) -> tuple[Any, Any]:
            keys = dict.fromkeys((PARAMS, "dropout", *each.inference_streams), jax.random.key(0))
            mutable = [BATCH_STATS, *further] if train else []
            with noted.noting():
                output, updated = each.call(variables, x, train=train, rngs=keys, mutable=mutable)
            noted.place = each.output or logits_place(output)
            return each.logits_of(output), updated

        model, found[train] = _traced(model, call, shapes, variables)
    (logits, _), (_, updated) = found[False], found[True]
    kept = tuple(name for name in further if _kinds(updated.get(name)) == _kinds(variables[name]))
    model = dataclasses.replace(
        model,
        train_streams=tuple(seen[True].streams),
        inference_streams=tuple(seen[False].streams),
        collections=kept,
        logits=logits,
        doubts=tuple(_doubts(statistics, seen, [name for name in further if name not in kept])),
    )
    return dataclasses.replace(model, told=_told(model, inputs, seen[False].place))


def _kinds(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def _doubts(statistics: bool, seen: Mapping[bool, _Seen], left: list[str]) -> Iterator[str]:
    """What looks like a mistake in how a model is called."""
    known = f"flags of the mode are {', '.join(FLAGS)}, as argument or field; config.apply can pass another"
    if statistics and seen[True].all_rest(nn.BatchNorm):
        yield f"its batch statistics never move: all nn.BatchNorm use running averages in training, too; {known}"
    if seen[True].all_rest(nn.Dropout):
        yield f"its dropout never drops: all nn.Dropout are deterministic in training, too; {known}"
    if not all(seen[False].resting[nn.Dropout]):
        yield f"it drops in inference, too, with fixed random numbers; {known}"
    if others := [name for name in left if name != "intermediates"]:
        yield f"what it collects in {', '.join(others)} is in no loss: add it to the output"


def _told(model: CalledModel, inputs: Any, place: str) -> str:
    """How a model is called, in words."""
    name = type(model.module).__name__
    if model.adapter:
        call = f"{getattr(model.adapter, '__name__', 'apply')}({name}, inputs, train)"
    else:
        args, kwargs = arguments_of(model.module, inputs)
        given = list(inspect.signature(type(model.module).__call__).parameters)[1 : 1 + len(args)]
        given += [key if value is not None else f"{key}=None" for key, value in kwargs.items()]
        call = f"{name}({', '.join([*given, *(f.told() for f in model.flags if f.holder == ARGUMENT)])})"
    fields = [flag.told() for flag in model.flags if flag.holder != ARGUMENT]
    rest = "" if model.flags or model.adapter else ", without a flag of the mode"
    streams = [name for name in model.train_streams if name not in model.inference_streams]
    return "; ".join(
        [
            f"{call}{', with ' if fields else ''}{', '.join(fields)}{rest}",
            *([f"random numbers in training: {', '.join(streams)}"] if streams else []),
            *([f"in both modes: {', '.join(model.inference_streams)}"] if model.inference_streams else []),
            *([f"collections: {', '.join(model.collections)}"] if model.collections else []),
            *([f"axis {', '.join(model.axis_names)}: the batch"] if model.axis_names else []),
            *([f"logits: output {place}"] if place else []),
        ]
    )


def _traced(model: CalledModel, call: Callable[..., Any], *args: Any) -> tuple[CalledModel, Any]:
    """The model, with the axes and streams without which `call(model, *args)` fails, and what that gives, traced.

    Raises:
      CallError: it fails.
    """
    try:
        return model, jax.eval_shape(lambda *args: call(model, *args), *args)
    except CallError:
        raise
    except Exception as error:  # Of a model of anybody's.
        for kind, words, field in _LACKING:
            lacking = re.search(words, str(error)) if isinstance(error, kind) else None
            if lacking and lacking[1] not in (known := getattr(model, field)):
                more: dict[str, Any] = {field: (*known, lacking[1])}
                return _traced(dataclasses.replace(model, **more), call, *args)
        told = _told(model, args[0], "")
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(args[0]))
        raise CallError(f"{told}, on {shapes}: {_explained(error, _unknown(model, args[0]))}") from error


def _unknown(model: CalledModel, inputs: Any) -> str:
    """Which of the inputs in a dict are no arguments, if others are."""
    names = list(inspect.signature(type(model.module).__call__).parameters)[1:]
    others = [name for name in inputs if name not in names] if isinstance(inputs, Mapping) else []
    return f"; {', '.join(others)} is no argument of its" if others and len(others) < len(inputs) else ""


def _explained(error: Exception, unknown: str) -> str:
    """What to change in a model, from an error in its call."""
    if isinstance(error, errors.InvalidRngError):
        return f"{_first_sentence(error)}. A loop passes on streams that it names: split_rngs={{'dropout': True, …}}"
    if isinstance(error, errors.ModifyScopeVariableError):
        return (
            f"it changes variables in inference: {_first_sentence(error)}. Let that depend on a flag of the mode: "
            f"{', '.join(FLAGS)}"
        )
    reason = " ".join(str(error).split())[:300].rstrip(".") or "no message"
    return (
        f"{type(error).__name__}: {reason}{unknown}. A dict of inputs is arguments by name, a tuple all of them; "
        "config.apply is a call of yours"
    )


def _first_sentence(error: Exception) -> str:
    """The first sentence of an error of Flax's, which end in a link."""
    return str(error).split(". ")[0].split(" (http")[0].rstrip(".")
