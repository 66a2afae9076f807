"""Contractions: the convolutions and dot products of a jaxpr, also those in loops and branches, and their MACs."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.extend.core


class Contraction(NamedTuple):
    """A convolution or dot product of a jaxpr.

    Attributes:
      scope: its name stack: the scopes that enclose it, from the outermost, joined by slashes.
      equation: the equation. In a scan it has the shapes of one step; vectorised by `vmap`, those of all instances.
      runs: how often scans run it.
    """

    scope: str
    equation: Any
    runs: int

    @property
    def is_product(self) -> bool:
        """Whether it is a dot product."""
        return self.equation.primitive.name == "dot_general"

    @property
    def macs(self) -> int:
        """Multiply-accumulates (MACs) of one run: output values times terms summed for each.

        Zeros that a dilation of the input inserts are not counted.
        """
        left, right = (variable.aval for variable in self.equation.invars)
        results, numbers = self.equation.outvars[0].aval.size, self.equation.params["dimension_numbers"]
        if self.is_product:
            return results * math.prod(left.shape[axis] for axis in numbers[0][0])
        channels = right.shape[numbers.rhs_spec[0]]
        return results * right.size // channels // math.prod(self.equation.params["lhs_dilation"])


def contractions(jaxpr: Any, scope: str = "", runs: int = 1) -> Iterator[Contraction]:
    """The contractions of a jaxpr, in order.

    Of alternatives, as in `lax.cond`, those with the most MACs count. A `lax.while_loop`, whose length is unknown,
    counts as one step.

    Args:
      jaxpr: the jaxpr.
      scope: the name stack around it.
      runs: how often it runs.
    """
    for equation in jaxpr.eqns:
        inner_scope = "/".join(name for name in (scope, str(equation.source_info.name_stack)) if name)
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield Contraction(inner_scope, equation, runs)
        inner_runs = runs * equation.params["length"] if equation.primitive.name == "scan" else runs
        parts = [
            list(contractions(inner, inner_scope, inner_runs))
            for inner in jax.extend.core.jaxprs_in_params(equation.params)
        ]
        if equation.params.get("branches_platforms"):
            parts = parts[-1:]  # Alternatives per platform, of which the last is the default.
        elif equation.primitive.name == "cond":
            parts = [max(parts, key=lambda part: sum(found.macs * found.runs for found in part))]
        for part in parts:
            yield from part
