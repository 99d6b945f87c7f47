"""Criteria: how much a task would lose with each unit removed. One criterion per file."""

from disparse_structured.scoring.criteria.fisher import Fisher
from disparse_structured.scoring.criteria.hessian import DiagonalHessian
from disparse_structured.scoring.criteria.learned import Learned
from disparse_structured.scoring.criteria.magnitude import Magnitude
from disparse_structured.scoring.criteria.random import Random
from disparse_structured.scoring.criteria.snip import SNIP
from disparse_structured.scoring.criteria.taylor import Taylor

__all__ = ["SNIP", "DiagonalHessian", "Fisher", "Learned", "Magnitude", "Random", "Taylor"]
