"""Command line of programs that take a config file."""

import importlib
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from launch.config_files import ConfigFileError, load_config, meant, what_failed


class _ConfigParser(flags.ArgumentParser):
    """Loads the config of the command line; `loaded` is this config before keys are overridden."""

    loaded: Any = None

    def parse(self, argument: str) -> Any:
        """Returns the locked config; ends the program with a one-line error if it cannot be loaded."""
        try:
            self.loaded = load_config(argument)
        except ConfigFileError as error:
            sys.exit(f"error: {error}")
        except Exception as error:  # Whatever a user's file may raise.
            sys.exit(f"error: --config={argument}: {what_failed(argument, error)}")
        if isinstance(self.loaded, ConfigDict):
            self.loaded.lock()
        return self.loaded


CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file, or the name of one of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written, and resumed from.")
CHECK = flags.DEFINE_bool("check", False, "Only checks the config, and estimates cost, steps, memory and time.")
_PARSER = flags.FLAGS["config"].parser = _ConfigParser()


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program with its flags, started as a module, a file or an installed command.

    Modules in the current directory can be imported, as with `python -m`, since configs refer to models and data as
    `package.module:function`.
    """
    here = pathlib.Path.cwd()
    if not sys.flags.safe_path and here not in [pathlib.Path(place).absolute() for place in sys.path]:
        for package in ("aqt_like", "hwcost", "fliqs_jax", "apq_jax"):
            importlib.import_module(package)  # of the same checkout as this module, whatever lies in `here`
        sys.path.insert(0, str(here))
    # absl's help shows flags and docstring of the started file, which may be the script of an installed command.
    sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
    for module in (__name__, main.__module__):
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    if "--help" in sys.argv[1:]:
        app.usage(shorthelp=True, writeto_stdout=True)
        return
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "check"],
        lambda given: (given["workdir"] or "").strip() or given["check"],
        message="--workdir=DIR must be given and not empty, or --check",
    )
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; ends the program with a one-line error and suggestions if a config key does not exist."""
    try:
        return app.parse_flags_with_usage(argv)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        keys = flatten_dict(_PARSER.loaded.to_dict(), sep=".") if _PARSER.loaded else {}
        given = [
            re.split("[ =]", argument)[0].removeprefix("--config.") for argument in argv if "--config." in argument
        ]
        for key in given if keys else ():
            is_section = any(known.startswith(f"{key}.") for known in keys)
            if key not in keys and not is_section:
                sys.exit(f"error: the config has no key {key!r}{meant(key, list(keys))}")
        sys.exit(f"error: {' '.join(argv[1:])}: {error}")
