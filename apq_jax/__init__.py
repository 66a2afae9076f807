"""APQ: a once-for-all network, accuracy predictors for its subnetworks, and evolutionary search. Public: `__all__`.

Function names are read with their module: `supernet.cut_out`, `predictor.fit`, `evolution.make`.
"""

from apq_jax import evolution, predictor, records, shrinking, supernet
from apq_jax.architecture_space import ArchitectureSpace, Stage
from apq_jax.architectures import SPACES
from apq_jax.within_budgets import BudgetError

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
