"""Building a packed model from a config, so that the weights of a packed checkpoint can be loaded."""

from collections.abc import Mapping

from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from mmgroupnet.deploy.packing import pack
from mmgroupnet.errors import UserError
from mmgroupnet.layers.packed import PackedUnit
from mmgroupnet.model_configs import check_outer_backbone, with_data_preprocessor
from mmgroupnet.registry import MODELS


def _refuse_other_weights(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *unused: object) -> None:
    """Raises if weights that do not belong to this packed model are loaded: mmengine would only log missing tensors and
    go on with random ones."""
    for name, unit in model.named_modules():
        if not isinstance(unit, PackedUnit):
            continue
        key = f'{prefix}{name}.bits' if name else f'{prefix}bits'
        if key not in state_dict:
            raise UserError(
                f'{key} is missing: a packed model takes only the weights of a packed checkpoint '
                '(mmgroupnet pack makes them)'
            )
        if state_dict[key].shape != unit.bits.shape:
            raise UserError(
                f'{key} is {tuple(state_dict[key].shape)} instead of {tuple(unit.bits.shape)}: the packed checkpoint '
                'is of another architecture than the model'
            )


@MODELS.register_module(name='Packed')
def build_packed(
    model: dict,
    data_preprocessor: dict | None = None,
    pretrained: None = None,
    train_cfg: None = None,
    backbone: dict | None = None,
) -> nn.Module:
    """Builds a model and packs it, so that the weights of a packed checkpoint can be loaded.

    Args:
        model: Config of any model with binary layers of mmgroupnet, built in the current default scope.
        data_preprocessor: Config of the model's data preprocessor, if ``model`` has none: mmengine's Runner puts it
            into the outermost dict. Default: None.
        pretrained: Always None; mmseg's ``init_model`` sets it. Default: None.
        train_cfg: Always None, like ``pretrained``. Default: None.
        backbone: Always empty: mmdet's ``init_detector`` looks for a backbone in the outermost dict. Default: None.

    Returns:
        The packed model. It loads only weights of its packed checkpoints.

    Raises:
        UserError: If the model has no binary layers, or one of its parts refuses its arguments.
    """
    check_outer_backbone(backbone)
    packed = pack(MMENGINE_MODELS.build(with_data_preprocessor(model, data_preprocessor)))
    packed.register_load_state_dict_pre_hook(_refuse_other_weights)
    return packed
