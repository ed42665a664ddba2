"""Builds the model of a config, and loads the weights of its checkpoint."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from mmgroupnet.checkpoints.match import check_state_dict
from mmgroupnet.checkpoints.read import read_checkpoint
from mmgroupnet.model_configs import with_data_preprocessor


def build_model(cfg: Config) -> nn.Module:
    """Builds the model of a config, like mmengine's Runner.

    Raises:
        UserError: If one of its parts refuses its arguments.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(with_data_preprocessor(cfg.model, cfg.get('data_preprocessor')))


def load_model(cfg: Config, checkpoint: str | Path) -> tuple[nn.Module, dict]:
    """Builds the model of a config with the weights of its checkpoint, on the CPU.

    Args:
        cfg: The config.
        checkpoint: A local file with the weights.

    Returns:
        The model, and the content of the file.

    Raises:
        UserError: If the file cannot be read or does not fit the model.
    """
    content = read_checkpoint(checkpoint)
    model = build_model(cfg)
    check_state_dict(model, content, str(checkpoint))
    load_checkpoint(model, str(checkpoint), map_location='cpu')
    return model, content
