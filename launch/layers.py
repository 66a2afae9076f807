"""Layers of a model, yours or one of ours: the paths that rules can match, and each layer's share of the cost.

    python -m launch.layers --model=my_package.my_module:make_model --input=32,32,3
        [--formats=int_s --rule="stem: bf16" --rule="(query|key|value)$: tie"]
    python -m launch.layers --model=my_package.my_module:make_model --input=ids=128:int32 --input=mask=128

`make_model` returns a linen module; all its arguments have defaults. With rules, the decision of each layer and its
options are listed as well (`hwcost/format_plan.py`); without, rules to consider. The share of the cost is that of the
multiply-accumulates (MACs). The last lines say how the model is called, and which MACs are in no listed layer, as those
of tied heads.
"""

import argparse
import pathlib
import shlex
import sys

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

from rich.console import Console
from rich.table import Table

from aqt_like.formats import format_space
from fliqs_jax import models
from fliqs_jax.models.call_finding import called, find_adapter
from hwcost import workload
from hwcost.format_plan import FormatPlan, format_plan
from hwcost.workload import LayerSpec, Workload
from launch import ending, model_arguments
from launch.rule_suggestions import suggested_rules


def table(layers: Workload, plan: FormatPlan | None) -> Table:
    """Table with one row per layer, and with the decision of each layer if there is a plan."""
    total = sum(layer.macs for layer in layers)
    options = {}
    if plan:
        decisions = plan.space.decisions
        for layer, index in zip(plan.workload, plan.decision_of, strict=True):
            granularity = plan.granularity_of.get(layer.path, "")
            options[layer.path] = (decisions[index].name, " ".join([", ".join(decisions[index].options), granularity]))
    rows = Table("path", "kind", "input", "output", box=None)
    rows.columns[0].no_wrap = True
    for column in ("MACs", "share", "weights"):
        rows.add_column(column, justify="right")
    if plan:
        rows.add_column("decision")
        rows.add_column("formats")
    for layer in layers:
        rows.add_row(
            layer.path,
            _kind(layer),
            _sizes(layer.input_size, layer.in_channels),
            _sizes(layer.output_size, layer.out_channels),
            f"{layer.macs:,}",
            f"{layer.macs / total:.1%}",
            f"{layer.weights:,}",
            *(options.get(layer.path, ("ignored: in float", "")) if plan else ()),
        )
    return rows


def _kind(layer: LayerSpec) -> str:
    """The kind of a layer, and what sets it apart from plain ones."""
    apart = {
        f"{layer.groups} groups": layer.groups > 1,
        "dilated": layer.is_dilated,
        f"{layer.runs:.4g} runs": layer.runs > 1,
    }
    return ", ".join([layer.kind, *(text for text, is_so in apart.items() if is_so)])


def _sizes(size: tuple[int, ...], channels: int) -> str:
    return "×".join(map(str, (*size, channels)))


def main(argv: list[str] | None = None) -> None:
    """Prints the layers of the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="package.module:function, or one of our names")
    parser.add_argument("--input", action="append", required=True, help=model_arguments.INPUT)
    parser.add_argument("--apply", default="", help="package.module:function, a call of yours (docs/own_models.md)")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, of the network, as in width=0.25")
    parser.add_argument("--dtype", choices=("float32", "int32"), default="float32", help="of the input")
    parser.add_argument("--formats", default="int_s", help="a format space, or formats joined by commas")
    parser.add_argument("--rule", action="append", default=[], help="'EXPRESSION: WHAT', may be given several times")
    parser.add_argument("--classes", type=model_arguments.positive, default=10)
    arguments = parser.parse_args(argv)
    with ending.in_one_line():
        example = model_arguments.example_of(arguments.model, arguments.input, arguments.dtype)
        settings = model_arguments.network_settings(arguments.set)
        model = models.create(arguments.model, classes=arguments.classes, **settings)
        adapter = find_adapter(arguments.apply)
        draws = models.drawn(model) if arguments.model in models.MODELS and not adapter else None
        call = called(model, model_arguments.several(example), adapter=adapter, draws=draws)
        found = workload.survey(call, example)
        layers = found.layers
        members = format_space(arguments.formats)
        plan = format_plan(layers, members, arguments.rule) if arguments.rule else None
    terminal = Console(markup=False)
    console = terminal if terminal.is_terminal else Console(width=160, markup=False)
    console.print(table(layers, plan))
    weights = sum(layer.weights for layer in layers)
    console.print(f"{len(layers)} layers, {found.layers_macs:,} MACs, {weights:,} weights")
    suggested = {} if plan else suggested_rules(layers, [member.name for member in members])
    for rule, reason in suggested.items():
        console.print(f"rule to consider: --rule={shlex.quote(rule)}  ({reason})", soft_wrap=True, highlight=False)
    for remark in (*call.remarks(), found.remark()):
        if remark:
            console.print(remark, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
