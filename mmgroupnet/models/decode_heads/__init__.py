from mmgroupnet.models.decode_heads.binary_aspp_head import BinaryASPPHead
from mmgroupnet.models.decode_heads.binary_fcn_head import BinaryFCNHead
from mmgroupnet.models.decode_heads.fcn_score_head import FCNScoreHead

__all__ = ['BinaryASPPHead', 'BinaryFCNHead', 'FCNScoreHead']
