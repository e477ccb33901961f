"""What is known of every estimator and every distribution, by name.

An estimator's record stands at the end of its module, beside what it is about; those of the
distributions are one table. Every other place that tells such a fact is written from them, or
compares with them.

>>> from gradest import records
>>> records.ESTIMATORS["rebar"].distributions
('Bernoulli', 'OneHotCategorical')
>>> records.DISTRIBUTIONS["Uniform"].fixed_support
False
"""

import importlib
import pkgutil

from . import estimators
from .distributions._capabilities import CAPABILITIES as CAPABILITIES
from .distributions._foreign import TWINS as TWINS
from .distributions._records import RECORDS as _DISTRIBUTIONS
from .distributions._records import DistributionRecord as DistributionRecord
from .estimators._record import Record as Record


def _of_estimators() -> list[Record]:
    """Of all the modules; what serves most distributions first."""
    names = [module.name for module in pkgutil.iter_modules(estimators.__path__)]
    modules = [importlib.import_module(f"{estimators.__name__}.{name}") for name in names]
    records = [record for module in modules for record in getattr(module, "RECORDS", ())]
    return sorted(records, key=lambda record: (-len(record.distributions), record.name))


ESTIMATORS: dict[str, Record] = {record.name: record for record in _of_estimators()}
DISTRIBUTIONS: dict[str, DistributionRecord] = {record.name: record for record in _DISTRIBUTIONS}
