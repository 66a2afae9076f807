"""Criteo's click log: FLIQNAS on the recommender, its formats and the rank and width of each layer (FLIQS, A.13).

    python -m launch.fliqs --config=configs/fliqnas_criteo.py --workdir=runs/fliqnas_criteo \\
        --config.data.file=train.txt

configs/fliqs_criteo.py tells how to run it on a sample.
"""

from ml_collections import ConfigDict

from configs import fliqs_criteo

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def get_config() -> ConfigDict:
    config = fliqs_criteo.get_config()
    config.architecture = ConfigDict({"widths": FACTORS, "ranks": FACTORS})
    config.profile_fraction = 1.0
    return config
