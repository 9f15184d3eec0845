"""What every model owes to build_model: to be laid out without memory, and then filled part by part."""

import math

import torch
from torch import nn


def assert_laid_out_and_filled(model_class, config):
    """On the meta device its parameters take no memory and its buffers are real; and no parameter is left unfilled."""
    model = model_class(config)
    with torch.device("meta"):
        laid_out = model_class(config)
    assert all(parameter.is_meta for parameter in laid_out.parameters())
    torch.testing.assert_close(dict(laid_out.named_buffers()), dict(model.named_buffers()))
    for parameter in model.parameters():
        nn.init.constant_(parameter, math.nan)
    for module in reversed(list(model.modules())):  # parts before the whole
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        model.init_weights(module)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
