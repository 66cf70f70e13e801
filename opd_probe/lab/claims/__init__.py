"""The paper's qualitative statements, each with a rule that decides whether it holds in miniature.

The rules were written before the runs that they judge, and are not changed afterwards. A statement that does not hold
stays here and is reported as false, with what was tried.
"""

from opd_probe.lab.claims.claim import Claim
from opd_probe.lab.claims.judging import CLAIMS, judge, write_claims

__all__ = ["CLAIMS", "Claim", "judge", "write_claims"]
