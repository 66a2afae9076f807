import importlib.metadata

import numpy as np
import pytest

from aqt_like.formats import parse_format
from benchmarks import mismatches, quantizers


def test_missing_peers_are_named_before_anything_is_measured(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SystemExit, match=r"found nothing, expected aqtp 0.9.0: pip install aqtp==0.9.0 qwix==0.1.8"):
        quantizers.main()


def test_mismatches_are_counted():
    fmt = parse_format("e2m1")

    def towards_zero(x):
        grid = fmt.magnitudes()
        return np.copysign(grid[np.searchsorted(grid, np.minimum(np.abs(x), 6), side="right") - 1], x)

    assert mismatches.share_of_mismatches(fmt, mismatches.ours(fmt), np.inf) == 0
    assert 0.4 < mismatches.share_of_mismatches(fmt, towards_zero, np.inf) < 0.6
    ieee = parse_format("e5m2")
    assert mismatches.share_of_mismatches(ieee, mismatches.reduce_precision(ieee), 57344.0) == 0
