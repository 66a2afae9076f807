"""Data sets with three disjoint splits, and batches that depend only on the step.

The batch of step `i` is a pure function of the seed and `i`, so a resumed run needs no other record of its position in
the data.

A source may say what it holds in a text, `content`, such as a digest of its examples. A run keeps it
(launch/training/provenance.py), and does not go on with other data.
"""

from launch.data.arrays import Arrays, Split
from launch.data.contract import Batch, DataError, Dataset, Source
from launch.data.sources import find, settings_of, unused_settings

__all__ = ["Arrays", "Batch", "DataError", "Dataset", "Source", "Split", "find", "settings_of", "unused_settings"]
