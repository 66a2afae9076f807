"""Data sets, cut into three splits that never overlap, as batches that depend on the step alone.

Since the batch of step `i` is a pure function of the seed and `i`, a run that is resumed at step `i` needs no other
record of where it was in the data.
"""

from launch.data.arrays import Arrays, Split
from launch.data.contract import Batch, DataError, Dataset, Source
from launch.data.sources import find

__all__ = ["Arrays", "Batch", "DataError", "Dataset", "Source", "Split", "find"]
