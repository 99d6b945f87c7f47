"""The structure of a model, read from its exported graph: channel groups, units, reach, constraints."""

from disparse_structured.structure.analysis import analyse, analyse_alike
from disparse_structured.structure.counting import count_macs, count_parameters
from disparse_structured.structure.declared import SizeDeclaration
from disparse_structured.structure.groups import (
    Attention,
    ChannelGroup,
    Consumer,
    Member,
    Pin,
    RatioConstraint,
)
from disparse_structured.structure.structure import AttributeUpdate, Form, Structure
from disparse_structured.structure.unused import UnusedModule

__all__ = [
    "Attention",
    "AttributeUpdate",
    "ChannelGroup",
    "Consumer",
    "Form",
    "Member",
    "Pin",
    "RatioConstraint",
    "SizeDeclaration",
    "Structure",
    "UnusedModule",
    "analyse",
    "analyse_alike",
    "count_macs",
    "count_parameters",
]
