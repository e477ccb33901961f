"""Gradients through random draws, as JAX transforms."""

from . import distributions as distributions
from ._annealing import anneal as anneal
from ._annealing import anneal_on_plateau as anneal_on_plateau
from ._annealing import with_annealing as with_annealing
from ._diagnostics import diagnose as diagnose
from ._expectation import cost as cost
from ._expectation import expectation as expectation
from ._gradient import UnestimatedGradientError as UnestimatedGradientError
from ._gradient import attach_gradient as attach_gradient
from ._monte_carlo import monte_carlo as monte_carlo
from ._sampler import Sampler as Sampler
from ._sites import UnestimatedGradientWarning as UnestimatedGradientWarning
from .estimators.arm import arm as arm
from .estimators.arm import disarm as disarm
from .estimators.enumeration import enumeration as enumeration
from .estimators.gumbel import gumbel_max as gumbel_max
from .estimators.gumbel import gumbel_softmax as gumbel_softmax
from .estimators.gumbel import st_gumbel_softmax as st_gumbel_softmax
from .estimators.gumbel_rao import gumbel_rao as gumbel_rao
from .estimators.muprop import muprop as muprop
from .estimators.rebar import rebar as rebar
from .estimators.reinmax import reinmax as reinmax
from .estimators.relax import relax as relax
from .estimators.reparameterize import reparameterize as reparameterize
from .estimators.score_function import score_function as score_function
from .estimators.straight_through import straight_through as straight_through
