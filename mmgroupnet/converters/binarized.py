"""Any model of a config made binary, as a config."""

import copy
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from mmgroupnet.converters.binarize import binarize
from mmgroupnet.deploy import with_data_preprocessor
from mmgroupnet.registry import MODELS

BINARIZED_TYPE = 'mmgroupnet.Binarized'


@MODELS.register_module(name='Binarized')
def build_binarized(
    policy: Sequence[Mapping],
    model: dict,
    data_preprocessor: dict | None = None,
    pretrained: None = None,
    train_cfg: None = None,
) -> nn.Module:
    """Builds a model and makes it binary.

    The result is the model itself, with other layers. Its ``init_weights()`` runs the float model's own initialisation,
    pretrained weights included, on a float copy, and makes that binary in the same way.

    Args:
        policy: The rules, see :func:`mmgroupnet.binarize`.
        model: Config of any model, built in the current default scope.
        data_preprocessor: Config of the model's data preprocessor, where ``model`` has none: mmengine's Runner puts it
            into the outermost dict. Default: None.
        pretrained: Always None, as mmseg's ``init_model`` sets it. Default: None.
        train_cfg: As ``pretrained``. Default: None.

    Returns:
        The model; ``model.binarization`` says what was done.

    Raises:
        ValueError: As :func:`mmgroupnet.binarize`, or if one of the model's parts refuses its arguments.
    """
    cfg = with_data_preprocessor(model, data_preprocessor)
    built = binarize(MMENGINE_MODELS.build(copy.deepcopy(cfg)), policy)  # Detectors write into their parts' configs.
    built.binarized_from = (policy, cfg)
    built.init_weights = _Initialisation(built)
    return built


class _Initialisation:
    """Initialises a model of :func:`build_binarized`; copied and pickled with it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self) -> None:
        policy, cfg = self.model.binarized_from
        source = MMENGINE_MODELS.build(copy.deepcopy(cfg))
        if hasattr(source, 'init_weights'):
            source.init_weights()
        source = binarize(source, policy)
        with torch.no_grad():
            given = source.state_dict()
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(given[name])
        report = source.binarization
        print_log(
            f'{len(given) - len(report.fresh)} tensors come from the float model, {len(report.fresh)} are fresh (norms '
            f'in front of signs, gates), {len(report.without_target)} of the float model have no place: '
            f'{", ".join(report.without_target) or "none"}',
            logger='current',
        )
