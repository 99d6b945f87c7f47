"""Every timm family: export, structure, plan, surgery, a training step, and stock Torch-Pruning beside it."""
