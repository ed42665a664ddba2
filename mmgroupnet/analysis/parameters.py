"""Counts of a model's parameters."""

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet.layers import BinaryConv2d


def count_parameters(config: str) -> tuple[int, int]:
    """Counts the parameters of a config's model.

    Args:
        config: A config file.

    Returns:
        Their number, and how many of them are weights of binary convs, which are stored as one bit.
    """
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    binary = sum(module.weight.numel() for module in model.modules() if isinstance(module, BinaryConv2d))
    return sum(parameter.numel() for parameter in model.parameters()), binary
