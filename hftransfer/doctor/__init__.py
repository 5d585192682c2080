"""Everything about data, model and machine that can fail later, found in the first seconds, with its fix."""

from hftransfer.doctor.command import doctor
from hftransfer.doctor.examination import examine, examine_loaded
from hftransfer.doctor.findings import KINDS, Finding, exit_code, explain
from hftransfer.doctor.repair import fix

__all__ = ["KINDS", "Finding", "doctor", "examine", "examine_loaded", "exit_code", "explain", "fix"]
