"""What is known of every estimator and every distribution, by name.

An estimator's record stands at the end of its module, beside what it is about; those of the
distributions are one table. Every other place that tells such a fact is written from them, or
compares with them.

>>> from gradest import records
>>> records.ESTIMATORS["rebar"].distributions
('Bernoulli', 'OneHotCategorical', 'PlackettLuce')
>>> records.DISTRIBUTIONS["Uniform"].fixed_support
False
"""

from .distributions._capabilities import CAPABILITIES as CAPABILITIES
from .distributions._foreign import TWINS as TWINS
from .distributions._records import RECORDS as _DISTRIBUTIONS
from .distributions._records import DistributionRecord as DistributionRecord
from .estimators._needs import all_records
from .estimators._record import Record as Record

ESTIMATORS: dict[str, Record] = {record.name: record for record in all_records()}
DISTRIBUTIONS: dict[str, DistributionRecord] = {record.name: record for record in _DISTRIBUTIONS}
