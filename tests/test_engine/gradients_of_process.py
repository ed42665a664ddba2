"""Script that test_distributed.py runs in every process of a launcher: writes gradients of the tiny model to a file."""

import sys

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmgroupnet.engine.launch import CPUDistributedDataParallel, setup_distribution


def gradients(config: str, launcher: str) -> dict[str, torch.Tensor]:
    """Gradients of the loss over four images, which the launcher's processes share. Batch norms are in eval mode."""
    cfg = Config.fromfile(config)
    cfg.launcher = launcher
    setup_distribution(cfg)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    cfg.model.backbone.norm_cfg = dict(type='SyncBN')
    # In double precision, since rounding differs between batch sizes and would flip a sign in single precision.
    model = MODELS.build(cfg.model).double().eval()
    rank, processes = 0, 1
    if launcher == 'pytorch':
        model = CPUDistributedDataParallel(model, device_ids=[0], broadcast_buffers=False)
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    dataset = DATASETS.build(cfg.val_dataloader.dataset)  # Validation data, since it has no random flips.
    samples = [dataset[index] for index in range(4)][rank::processes]
    data = dict(
        inputs=[sample['inputs'] for sample in samples], data_samples=[sample['data_samples'] for sample in samples]
    )
    inner = model.module if launcher == 'pytorch' else model
    data = inner.data_preprocessor(data)
    losses = model(data['inputs'].double(), data['data_samples'], mode='loss')
    inner.parse_losses(losses)[0].backward()
    return {name: parameter.grad for name, parameter in inner.named_parameters()}


if __name__ == '__main__':
    found = gradients(sys.argv[1], 'pytorch')
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[2])
    torch.distributed.destroy_process_group()
