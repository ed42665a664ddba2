"""The commands for contributors and for a public CI exist."""

import re
from pathlib import Path

import torch
import yaml

import mmgroupnet
from mmgroupnet.ops import selected_kernels

ROOT = Path(__file__).parents[1]
TARGETS = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


def test_the_command_of_the_issue_template_prints_versions(capsys, monkeypatch):
    # The real function runs compilers, which takes seconds.
    monkeypatch.setattr('mmengine.utils.dl_utils.collect_env', lambda: {'PyTorch': torch.__version__})
    template = (ROOT / '.github/ISSUE_TEMPLATE/bug_report.md').read_text()
    (code,) = re.findall(r'^python -c "\n(.*?)^"$', template, re.DOTALL | re.MULTILINE)
    exec(code, {})
    out = capsys.readouterr().out
    assert f'mmgroupnet: {mmgroupnet.__version__} with kernels for {selected_kernels()}' in out
    assert f'PyTorch: {torch.__version__}' in out


def test_the_workflow_calls_ci_run_and_targets_of_make():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    jobs = workflow['jobs']
    commands = [step['run'] for job in jobs.values() for step in job['steps'] if 'run' in step]
    assert commands == ['.ci/run', 'make test-oldest', 'make test-onedl']
    assert {'test-oldest', 'test-onedl'} <= TARGETS
    assert jobs['all']['strategy']['matrix']['python'] == ['3.11', '3.12']


def test_every_target_that_contributing_names_exists():
    named = set(re.findall(r'`make ([a-z-]+)', (ROOT / 'CONTRIBUTING.md').read_text()))
    assert {'format', 'lint', 'test', 'test-quick'} <= named <= TARGETS


def test_pre_commit_runs_make_lint():
    (repo,) = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert (repo['repo'], repo['hooks'][0]['entry']) == ('local', 'make lint')
