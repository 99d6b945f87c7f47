"""Getting accuracy back after pruning."""

from disparse_structured.recovery.finetune import FinetuneFacts, finetune

__all__ = ["FinetuneFacts", "finetune"]
