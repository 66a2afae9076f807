"""How commands end: what went wrong is one line, and an interruption has the exit code of its signal."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def in_one_line(*errors: type[Exception]) -> Iterator[None]:
    """Ends the program with one line on standard error for what a user can mend: settings, files, data, full disks.

    Args:
      *errors: exceptions that are told by their message, in addition to ValueError.
    """
    try:
        yield
    except OSError as error:
        sys.exit(f"error: {of_system(error)}")
    except MemoryError:
        sys.exit("error: out of memory")
    except (ValueError, *errors) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def of_system(error: OSError) -> str:
    """What the operating system refused, and for which file."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
