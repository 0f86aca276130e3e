"""A model in evaluation, and left as it was met."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; afterwards each is in its own again, and has the weights that it had.

    RWKV divides some of its weights by powers of two at its first forward pass in evaluation, and multiplies them at
    the next one in training: in between, a model that is being trained would be saved with weights that are not its
    own. That is undone.

    Raises
    ------
    RuntimeError
        The forward pass has changed weights in another way.
    """
    modes = [(module, module.training) for module in model.modules()]
    scaled = [(module, module.layers_are_rescaled) for module, _ in modes if hasattr(module, "_rescale_layers")]
    own = {id(parameter) for module, _ in scaled for parameter in module.parameters()}
    versions = [(name, parameter, parameter._version) for name, parameter in model.named_parameters()
                if id(parameter) not in own and not parameter.is_inference()]
    model.eval()
    try:
        yield
    finally:
        changed = [name for name, parameter, version in versions if parameter._version != version]
        for module, before in scaled:
            if module.layers_are_rescaled != before:
                module.training = not before  # of the mode that they were rescaled for
                module._rescale_layers()
        for module, training in modes:  # by their own methods, parents first: some merge their weights in evaluation
            module.train(training)
        if changed:  # whatever else went wrong: it may come of this
            raise RuntimeError(f"a forward pass of {type(model).__name__} changes its weights ({', '.join(changed[:3])}"
                               f"{', ...' if len(changed) > 3 else ''}): it is no longer the model that it was.")
