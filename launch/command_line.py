"""The command line of programs that take a config file."""

import difflib
import re
import runpy
import sys
from collections.abc import Callable

from absl import app, flags
from flax.traverse_util import flatten_dict
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written, and resumed from.", required=True)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program under its flags."""
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a config key that does not exist is told in one line, with those that may be meant."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        files = [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]
        keys = {}
        for path, _, variant in (file.partition(":") for file in files):
            config = runpy.run_path(path)["get_config"](*[variant] if variant else [])
            keys = flatten_dict(config.to_dict(), sep=".")
        given = [
            re.split("[ =]", argument)[0].removeprefix("--config.") for argument in argv if "--config." in argument
        ]
        for key in given:
            if key not in keys:
                name = key.split(".")[-1]
                meant = [k for k in keys if k.split(".")[-1] == name] or difflib.get_close_matches(key, keys)
                hint = f"; did you mean {' or '.join(meant)}?" if meant else f": it has {', '.join(keys)}"
                sys.exit(f"error: the config has no key {key!r}{hint}")
        raise
