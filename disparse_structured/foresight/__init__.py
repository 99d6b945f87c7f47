"""What removing units will cost each task once the layers that read them have been refit."""

from disparse_structured.foresight.curves import Curve, Curves, foresee
from disparse_structured.foresight.path import Foresight

__all__ = ["Curve", "Curves", "Foresight", "foresee"]
