"""What another package needs to add an operator or a size.

**An operator.** The structure of a model follows from *labels*: every position of every parameter dimension
has one. Each value of the exported graph is a tuple of :class:`Axis`, one per dimension, that holds the
labels of its positions. The rule of an operator says how labels propagate from its arguments to its
result. An operator without a rule pins everything that passes through it. A rule takes a :class:`Trace`, in
which it records what it knows, and a :class:`Call`, which holds the arguments by schema name. It returns the
:class:`Value` of the result (a list of them if the operator returns several tensors):

>>> import torch
>>> from torch import nn
>>> from disparse_structured import Task
>>> from disparse_structured.structure import analyse
>>> from disparse_structured.structure.extending import rule
>>> class Smooth(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
...     def forward(self, x):
...         return {"out": self.last(torch.special.log_ndtr(self.first(x)))}
>>> def units():
...     return analyse(Smooth(), torch.zeros(3, 4), [Task("out", "out")]).units
>>> units()
0
>>> @rule(torch.ops.aten.special_log_ndtr)
... def log_ndtr(trace, call):
...     return call["self"]  # element by element: every position keeps its label
>>> units()
8

A rule may call :meth:`Trace.unite` (positions that must be removed together), :meth:`Trace.pin`
(positions that must be kept, and why), :meth:`Trace.consume` (the operator contracts over a dimension, or
takes a statistic over it), :meth:`Trace.literal` (a number that must become the count of the kept positions),
:meth:`Trace.multiply` (multiply-accumulates, for the cost), :meth:`Trace.kind`, and :meth:`Trace.unknown`
for a case it does not handle. The rules in :mod:`disparse_structured.structure.rules` are examples.

Whether the operator contracts with a weight, normalizes, averages, moves values or takes sizes is stated in
its record, an :class:`Operator`: pass it in the same call, ``@rule(torch.ops.mine.scaled_linear,
record=Operator(Contracts("linear", input_dim=1)))``. Scoring, the masked twin, weight masks, the rewriting of
sizes and the refit look it up.

An installed package registers the module with its rules as an entry point of the group
``disparse_structured.rules``; it is imported before a model is analyzed::

    [project.entry-points."disparse_structured.rules"]
    mine = "mine.disparse_rules"

A wrong rule cannot silently produce a wrong network: the result is verified against the masked twin.

**A size.** A method that ``analyse`` does not run, such as timm's ``reset_classifier``, may compute with an
integer attribute of its module. :class:`SizeDeclaration` says what the attribute counts. A function that
takes a module and returns the declarations of that module is an entry point of the group
``disparse_structured.sizes``::

    [project.entry-points."disparse_structured.sizes"]
    mine = "mine.disparse_sizes:sizes"
"""

from disparse_structured.graph.operators import Contracts, Operator
from disparse_structured.structure.declared import SizeDeclaration
from disparse_structured.structure.labels import PINNED, Axis, Value
from disparse_structured.structure.tracing import Call, Trace, plain, rule

__all__ = [
    "PINNED",
    "Axis",
    "Call",
    "Contracts",
    "Operator",
    "SizeDeclaration",
    "Trace",
    "Value",
    "plain",
    "rule",
]
