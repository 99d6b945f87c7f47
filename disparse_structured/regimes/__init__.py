"""When to prune: after training, at initialization, or during training. One class per regime.

Each works inside a training loop of your own::

    regime = Dynamic(model, example_inputs, tasks, batches, budget=Budget(macs=0.3), steps=10_000)
    optimizer = torch.optim.AdamW(regime.model.parameters())
    for batch in loader:
        ...                     # forward, backward, optimizer.step() on regime.model
        regime.step(optimizer)
    pruned = regime.finish()

or as the callback of :func:`disparse_structured.training.train`. ``finish`` returns the physically
smaller network, verified against the masked twin.
"""

from disparse_structured.regimes.dynamic import Dynamic
from disparse_structured.regimes.early import Early
from disparse_structured.regimes.iterative import Iterative
from disparse_structured.regimes.physical import Pretrained, Static
from disparse_structured.regimes.regime import Regime

__all__ = ["Dynamic", "Early", "Iterative", "Pretrained", "Regime", "Static"]
