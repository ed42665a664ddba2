"""Training without GPUs in several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.testing import assert_close

from mmgroupnet.engine.launch import setup_distribution
from mmgroupnet.errors import UserError
from tests.test_engine.gradients_of_process import gradients
from tests.tiny_run import write_tiny_run

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return str(listener.getsockname()[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPUs')
def test_two_processes_have_the_gradients_of_one(tmp_path):
    config = write_tiny_run(tmp_path)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}']
    script = str(Path(__file__).with_name('gradients_of_process.py'))
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    subprocess.run([*launch, script, str(config), str(tmp_path / 'gradients.pth')], env=environment, check=True)
    expected = gradients(str(config), 'none')
    found = torch.load(tmp_path / 'gradients.pth')
    assert sum(gradient.abs().max() > 0 for gradient in expected.values()) > 50
    assert_close(found, expected)


def test_launchers_that_need_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='--launcher slurm needs GPUs; without them use --launcher pytorch'):
        setup_distribution(Config(dict(launcher='slurm')))


def test_processes_of_mpi_take_their_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_RANK', '3')
    setup_distribution(Config(dict(launcher='mpi')))
    assert os.environ['LOCAL_RANK'] == '3'


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(UserError, match='process 1 of this machine finds 1 GPUs: start one process per GPU'):
        setup_distribution(Config(dict(launcher='pytorch')))
