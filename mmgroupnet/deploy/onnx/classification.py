"""The scores of mmpretrain's classifiers, in the graph."""

from mmpretrain.models.classifiers.image import ImageClassifier
from mmpretrain.models.heads.cls_head import ClsHead
from mmpretrain.models.heads.multi_label_cls_head import MultiLabelClsHead
from torch import Tensor, nn

from mmgroupnet.deploy.onnx.errors import RAW_ADVICE
from mmgroupnet.deploy.onnx.written import differing
from mmgroupnet.errors import UserError


def head_of(model: nn.Module) -> nn.Module | None:
    """The head of an ImageClassifier, or None."""
    return model.head if isinstance(model, ImageClassifier) and model.with_head else None


class Scores(nn.Module):
    """Computes scores of the classes from the outputs of a head, as the classifier's ``predict`` does.

    Args:
        model: An ImageClassifier.

    Shape: the picture, the network's input and its logits to ``scores`` ``(N, classes)``, see docs/onnx_file.md.

    Raises:
        UserError: If the classifier or its head is not supported.
    """

    outputs = ('scores',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, ImageClassifier) or differing(model, ['predict'], ImageClassifier):
            raise UserError(
                f'model={type(model).__name__}: the exporter supports only an ImageClassifier: {RAW_ADVICE}'
            )
        made_by = [kind for kind in (ClsHead, MultiLabelClsHead) if isinstance(model.head, kind)]
        if not made_by or differing(model.head, ['predict', '_get_predictions'], made_by[0]):
            raise UserError(
                f'head={type(model.head).__name__}: the exporter supports only heads that compute scores as ClsHead or '
                f'MultiLabelClsHead does: {RAW_ADVICE}'
            )
        # Classes of a multi-label head are not exclusive.
        self.is_exclusive = made_by[0] is ClsHead

    def forward(self, image: Tensor, x: Tensor, maps: tuple[Tensor, ...]) -> tuple[Tensor]:
        (logits,) = maps
        return (logits.softmax(1) if self.is_exclusive else logits.sigmoid(),)
