"""Recovers accuracy by training without labels: the pruned network learns from the dense one."""

from disparse_structured.recovery.distillation import Distillation
from disparse_structured.recovery.recovery import Recover, Recovery, Student, Subject

__all__ = ["Distillation", "Recover", "Recovery", "Student", "Subject"]
