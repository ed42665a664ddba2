"""The config type ``mmgroupnet.Binarized``: makes the model of any config binary."""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from types import new_class
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from mmgroupnet.converters.binarize import binarize
from mmgroupnet.converters.report import binarization_of
from mmgroupnet.layers import GroupwiseChain
from mmgroupnet.model_configs import check_outer_backbone, with_data_preprocessor
from mmgroupnet.registry import MODELS


@MODELS.register_module(name='Binarized')
def build_binarized(
    policy: Sequence[Mapping],
    model: dict,
    data_preprocessor: dict | None = None,
    pretrained: None = None,
    train_cfg: None = None,
    backbone: dict | None = None,
) -> nn.Module:
    """Builds a model and makes it binary.

    The result is the model itself, with other layers. Its ``init_weights()`` runs the float model's own initialisation,
    pretrained weights included, on a float copy, and makes the copy binary in the same way.

    Args:
        policy: The rules, see :func:`mmgroupnet.binarize`.
        model: Config of any model, built in the current default scope.
        data_preprocessor: Config of the model's data preprocessor, if ``model`` has none: mmengine's Runner puts it
            into the outermost dict. Default: None.
        pretrained: Always None; mmseg's ``init_model`` sets it. Default: None.
        train_cfg: Always None, like ``pretrained``. Default: None.
        backbone: Always empty: mmdet's ``init_detector`` looks for a backbone in the outermost dict. Default: None.

    Returns:
        The model, whose class is a subclass of the stock model's class. :func:`mmgroupnet.converters.binarization_of`
        reports the changes.

    Raises:
        UserError: As :func:`mmgroupnet.binarize`, or if one of the model's parts refuses its arguments.
    """
    check_outer_backbone(backbone)
    cfg = with_data_preprocessor(model, data_preprocessor)
    # A copy, since detectors change the configs of their parts.
    built: Any = binarize(MMENGINE_MODELS.build(copy.deepcopy(cfg)), policy)
    stock: Any = type(built)
    built.__class__ = _binarized_class(stock)
    built.binarized_from = policy, cfg
    return built


class _Binarized:
    """The methods that a binarised model overrides; its stock class follows in the method resolution order."""

    binarized_from: tuple[Sequence[Mapping], dict]  # policy and config of the float model

    def init_weights(self: Any) -> None:
        """Builds the float model again, initialises it, and takes over its weights."""
        policy, cfg = self.binarized_from
        source = MMENGINE_MODELS.build(copy.deepcopy(cfg))
        if hasattr(source, 'init_weights'):
            source.init_weights()
        source = binarize(source, policy)
        with torch.no_grad():
            source_state = source.state_dict()
            for name, tensor in self.state_dict().items():
                tensor.copy_(source_state[name])
        report = binarization_of(source)
        assert report is not None
        print_log(
            f'{len(source_state) - len(report.new_tensors)} tensors come from the float model, '
            f'{len(report.new_tensors)} are new (norms in front of signs, gates), {len(report.dropped_tensors)} of the '
            f'float model have no place: {", ".join(report.dropped_tensors) or "none"}',
            logger='current',
        )

    def __reduce_ex__(self, protocol: object) -> tuple:
        # Pickle looks classes up by name, but this one is created at run time.
        _, stock = type(self).__bases__
        return _new, (stock,), self.__getstate__()


class _BinarizedWithDepths(_Binarized):
    """For stock models that know the depths of their layers; mmpretrain's layer-wise learning rates ask whether a model
    has the method."""

    def get_layer_depth(self: Any, param_name: str) -> tuple[int, int]:
        """The depth of a parameter's layer and the number of layers.

        Args:
            param_name: The dotted name of a parameter.
        """
        stock: Any = super()
        return stock.get_layer_depth(_float_name(self, param_name))


def _float_name(model: nn.Module, name: str) -> str:
    """The name that a parameter of a chain's block has in the float model, where the block is a child of its own."""
    parts = name.split('.')
    for depth in range(1, len(parts)):
        if isinstance(model.get_submodule('.'.join(parts[:depth])), GroupwiseChain):
            # stage.FIRST.blocks.POSITION.branches.BRANCH.conv.weight, or stage.FIRST.blocks.POSITION.gate.weight
            first, position = parts[depth - 1], int(parts[depth + 1])
            block = str(int(first) + position) if first.isdigit() else first
            rest = parts[depth + 4 :] if parts[depth + 2] == 'branches' else parts[depth + 2 :]
            return '.'.join([*parts[: depth - 1], block, *rest])
    return name


@cache
def _binarized_class(stock: type[nn.Module]) -> type[nn.Module]:
    """The class of binarised models for a stock class."""
    methods = _BinarizedWithDepths if hasattr(stock, 'get_layer_depth') else _Binarized
    # Its module tells of which library the model is.
    return new_class(
        f'Binarized{stock.__name__}',
        (methods, stock),
        exec_body=lambda body: body.update(__module__=stock.__module__),
    )


def _new(stock: Any) -> nn.Module:
    """A binarised model without its state, for copies and pickles."""
    kind = _binarized_class(stock)
    return kind.__new__(kind)
