"""How a model is called: its inputs, its mode, its random numbers, and where its logits are.

`call_finding.called` finds out, once. Training, evaluation, freezing and cost models then call any model alike, by
`CalledModel.init` and `CalledModel.apply`, which are those of linen.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

FLAGS = {"train": True, "training": True, "is_training": True, "deterministic": False}
"""Names of mode flags, and their values in training."""

BATCH_STATS, PARAMS = "batch_stats", "params"
ARGUMENT, FIELD = "argument", "field"  # holders of a flag
_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Adapter = Callable[[nn.Module, Any, bool], Any]
"""`(model, inputs, train) → output`: a call of a bound module, which a user writes where none is found."""


class CallError(ValueError):
    """A model cannot be called; the message says how it was, and what to change."""


class Flag(NamedTuple):
    """A mode flag.

    Attributes:
      name: one of `FLAGS`.
      holder: `argument` of the call, `field` of the module, or the name of its field that holds a dataclass with it.
    """

    name: str
    holder: str

    def told(self) -> str:
        """The flag as in a call."""
        place = {ARGUMENT: "", FIELD: "its field "}.get(self.holder, f"its field {self.holder}.")
        return f"{place}{self.name}={'train' if FLAGS[self.name] else 'not train'}"


@dataclasses.dataclass(frozen=True)
class CalledModel:
    """A linen module and how it is called. Its `init` and `apply` take inputs of any structure as one argument.

    Attributes:
      module: the module.
      flags: mode flags that it has.
      output: place of the logits in what it returns, as in `logits` or `0`; if empty, `logits_place` finds it.
      adapter: calls the module instead of `__call__`.
      train_streams, inference_streams: names of the random numbers that it draws.
      axis_names: names of mapped axes that it reduces over, as `nn.BatchNorm(axis_name="batch")`: the whole batch.
      has_statistics: whether it has batch statistics.
      collections: names of further variable collections that it reads or updates.
      logits: shape and type of the logits of the example; None if there was none.
      told: how it is called, in words.
      doubts: what looks like a mistake in that.
    """

    module: nn.Module
    flags: tuple[Flag, ...] = ()
    output: str = ""
    adapter: Adapter | None = None
    train_streams: tuple[str, ...] = ()
    inference_streams: tuple[str, ...] = ()
    axis_names: tuple[str, ...] = ()
    has_statistics: bool = True
    collections: tuple[str, ...] = ()
    logits: jax.ShapeDtypeStruct | None = None
    told: str = ""
    doubts: tuple[str, ...] = ()

    def init(self, rngs: Any, inputs: Any, *, train: bool = False) -> dict[str, Any]:
        """Initial variables, without the boxes of partitioned ones; `rngs` as in `apply`."""
        keys: Any = rngs
        if self.inference_streams and not isinstance(rngs, Mapping):
            keys = {**_keys(self.inference_streams, rngs), PARAMS: rngs}
        module, args, kwargs = self._bound(inputs, train)
        return nn.meta.unbox(self._mapped(lambda: module.init(keys, *args, **kwargs)))

    def apply(
        self, variables: Mapping[str, Any], inputs: Any, *, train: bool = False, rngs: Any = None, mutable: Any = False
    ) -> Any:
        """The logits, and with `mutable` also the updated collections, as of linen's `apply`.

        Args:
          variables: of the module.
          inputs: array, or another structure of arrays, as `called` was given.
          train: the mode.
          rngs: key, from which each stream gets its own, or keys by stream. Without it, streams are from one fixed key,
            and a model that draws numbers in training, but has no batch statistics, is in inference mode.
          mutable: as in linen.
        """
        measured = train and rngs is None and bool(self.train_streams)
        train = train and (self.has_statistics or not measured)
        if not isinstance(rngs, Mapping):
            streams = self.train_streams if train else self.inference_streams
            rngs = _keys(streams, rngs) if streams else None
        found = self.call(variables, inputs, train=train, rngs=rngs, mutable=mutable)
        if mutable is False:
            return self.logits_of(found)
        output, updated = found
        return self.logits_of(output), updated

    @property
    def updated(self) -> list[str]:
        """Names of the collections that calls in training update."""
        return [BATCH_STATS, *self.collections]

    def without_dropout(self) -> contextlib.AbstractContextManager[None]:
        """Within this block, `nn.Dropout` passes on its input: what is measured in training mode drops nothing."""
        return nn.intercept_methods(_passed_on) if self.train_streams else contextlib.nullcontext()

    def call(self, variables: Mapping[str, Any], inputs: Any, *, train: bool, rngs: Any, mutable: Any) -> Any:
        """What the module returns, and with `mutable` also the updated collections; all arguments as in linen."""
        module, args, kwargs = self._bound(inputs, train)
        return self._mapped(lambda: module.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs))

    def remarks(self) -> list[str]:
        """How the model is called, in words, and what looks like a mistake in that, a line each."""
        return [f"the model is called as {self.told}", *(f"doubtful: {doubt}" for doubt in self.doubts)]

    def logits_of(self, output: Any) -> Any:
        """The logits in what the module returns."""
        place = self.output or logits_place(output)
        for part in place.split(".") if place else ():
            try:
                output = _member(output, part)
            except (LookupError, AttributeError, TypeError) as error:
                raise CallError(f"output={self.output!r}: the model returns {_outline(output)} there") from error
        if not hasattr(output, "shape"):
            raise CallError(f"output={self.output!r}: the model returns {_outline(output)} there, expected an array")
        return output

    def _bound(self, inputs: Any, train: bool) -> tuple[nn.Module, tuple, dict[str, Any]]:
        """The module in a mode, and the arguments of its call."""
        module: Any = self.module
        mode = {}
        for flag in self.flags:
            value = train == FLAGS[flag.name]
            if flag.holder == ARGUMENT:
                mode[flag.name] = value
            elif flag.holder == FIELD:
                module = module.clone(**{flag.name: value})
            else:
                changed = dataclasses.replace(getattr(module, flag.holder), **{flag.name: value})
                module = module.clone(**{flag.holder: changed})
        if self.adapter:
            return module, (inputs, train), {"method": self.adapter}
        args, kwargs = arguments_of(module, inputs)
        return module, args, {**kwargs, **mode}

    def _mapped(self, call: Callable[[], Any]) -> Any:
        """`call()` in mapped axes of size 1 of these names."""
        for name in self.axis_names:
            call = jax.vmap(call, in_axes=(), out_axes=None, axis_size=1, axis_name=name)
        return call()


def arguments_of(module: nn.Module, inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """The arguments that inputs are for `__call__` of a module; see `called`."""
    parameters = dict(list(inspect.signature(type(module).__call__).parameters.items())[1:])
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    args, kwargs = (inputs,), {}
    if isinstance(inputs, Mapping) and (is_open or inputs.keys() <= parameters.keys()):
        args, kwargs = (), dict(inputs)
    elif isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        args = inputs
    if FLAGS.keys() & list(parameters)[: len(args)]:  # A flag stands before an input: by name.
        names = [name for name, parameter in parameters.items() if name not in FLAGS and parameter.kind in _BY_NAME]
        args, kwargs = args[len(names) :], dict(zip(names, args, strict=False))
    for position, (name, parameter) in enumerate(parameters.items()):
        lacking = parameter.default is parameter.empty and name not in kwargs and name not in FLAGS
        by_name = parameter.kind is parameter.KEYWORD_ONLY or position >= len(args)
        if lacking and by_name and parameter.kind in _BY_NAME:
            kwargs[name] = None
    return args, kwargs


def logits_place(output: Any) -> str:
    """Where the logits are in what a model returns: it alone, its `logits`, or its first part; as in `0.logits`."""
    place, inside = [], output
    while not hasattr(inside, "shape"):
        has_logits = hasattr(inside, "logits") or (isinstance(inside, Mapping) and "logits" in inside)
        place.append("logits" if has_logits else "0")
        try:
            inside = _member(inside, place[-1])
        except (LookupError, AttributeError, TypeError) as error:
            raise CallError(
                f"the model returns {_outline(output)}: say which part holds the logits by config.output, as in "
                "'logits', '0' or '0.logits'"
            ) from error
    return ".".join(place)


def _member(output: Any, part: str) -> Any:
    """A part by its name or number; an array has none."""
    if isinstance(output, Mapping):
        return {str(name): inside for name, inside in output.items()}[part]
    if hasattr(output, "shape"):
        raise LookupError(part)
    return output[int(part)] if part.isdecimal() and isinstance(output, tuple | list) else getattr(output, part)


def _outline(output: Any) -> str:
    """What a model returns, in words."""
    kind = type(output).__name__
    if hasattr(output, "shape"):
        return f"an array {list(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {kind} of {', '.join(map(str, output)) or 'nothing'}"
    if isinstance(output, tuple | list) and not hasattr(output, "_fields"):
        return f"a {kind} of {', '.join(map(_outline, output)) or 'nothing'}"
    names = getattr(output, "_fields", None) or getattr(output, "__dataclass_fields__", ())
    return f"a {kind} of {', '.join(names)}" if names else "None" if output is None else f"a {kind}"


def _keys(streams: tuple[str, ...], key: jax.Array | None) -> dict[str, jax.Array]:
    """A key of its own for each stream, and one for streams in loops that pass on no other; without key, fixed ones."""
    names = [PARAMS, *(name for name in streams if name != PARAMS)]
    return dict(zip(names, jax.random.split(jax.random.key(0) if key is None else key, len(names)), strict=True))


def _passed_on(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    """An interceptor without dropout."""
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return args[0] if args else kwargs["inputs"]
    return call(*args, **kwargs)
