"""From a plan to a smaller network: module, exported graph, weight masks, extraction, saving."""

from disparse_structured.surgery.applied import Applied
from disparse_structured.surgery.module import apply

__all__ = ["Applied", "apply"]
