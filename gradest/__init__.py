"""Gradients through random draws, as JAX transforms."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import distributions as distributions
from ._annealing import anneal as anneal
from ._annealing import anneal_on_plateau as anneal_on_plateau
from ._annealing import with_annealing as with_annealing
from ._calls import INSTEAD_OF_ESTIMATORS as _INSTEAD
from ._calls import missing_from as _missing_from
from ._derivatives.attach import attach_gradient as attach_gradient
from ._derivatives.refuse import UnestimatedGradientError as UnestimatedGradientError
from ._derivatives.refuse import UnestimatedGradientWarning as UnestimatedGradientWarning
from ._diagnostics.diagnose import diagnose as diagnose
from ._explain.explain import explain as explain
from ._installation import warn_of_wrong_sums as _warn_of_wrong_sums
from ._monte_carlo import monte_carlo as monte_carlo
from ._sampler import Sampler as Sampler
from ._transform.expectation import expectation as expectation
from ._transform.spend import cost as cost
from ._transform.while_loop import while_loop as while_loop
from ._version import __version__ as __version__
from .estimators.antithetic import antithetic as antithetic
from .estimators.arm import arm as arm
from .estimators.arm import disarm as disarm
from .estimators.delta_method import delta_method as delta_method
from .estimators.dreg import dreg as dreg
from .estimators.enumeration import enumeration as enumeration
from .estimators.gaussian_smoothing import gaussian_smoothing as gaussian_smoothing
from .estimators.gumbel import gumbel_max as gumbel_max
from .estimators.gumbel import gumbel_softmax as gumbel_softmax
from .estimators.gumbel import st_gumbel_softmax as st_gumbel_softmax
from .estimators.gumbel_rao import gumbel_rao as gumbel_rao
from .estimators.measure_valued import measure_valued as measure_valued
from .estimators.muprop import muprop as muprop
from .estimators.rebar import rebar as rebar
from .estimators.reinmax import reinmax as reinmax
from .estimators.relax import relax as relax
from .estimators.reparameterize import reparameterize as reparameterize
from .estimators.score_function import score_function as score_function
from .estimators.straight_through import straight_through as straight_through
from .estimators.stratified import stratified as stratified
from .estimators.sum_and_sample import sum_and_sample as sum_and_sample
from .estimators.unordered_set import unordered_set as unordered_set
from .estimators.vimco import vimco as vimco

_warn_of_wrong_sums()

# Out of sight of checkers of types, to which a module with a `__getattr__` has any name.
if not _TYPE_CHECKING:
    __getattr__ = _missing_from(__name__, _INSTEAD)
