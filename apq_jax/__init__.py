"""APQ: a once-for-all network, predictors of what is in it, and evolution over both. Public: `__all__`.

Functions are named to be read with their module: `supernet.cut_out`, `predictor.fit`, `evolution.make`.
"""

from apq_jax import evolution, predictor, records, shrinking, supernet
from apq_jax.architectures import SPACES, ArchitectureSpace, Stage
from apq_jax.evolution import BudgetError

__all__ = [
    "SPACES",
    "ArchitectureSpace",
    "BudgetError",
    "Stage",
    "evolution",
    "predictor",
    "records",
    "shrinking",
    "supernet",
]
