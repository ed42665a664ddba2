"""The command ``mmgroupnet``."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmgroupnet import __main__ as console
from mmgroupnet.engine.configs import load_config
from mmgroupnet.shipped_files import shipped
from mmgroupnet.version import __version__

ROOT = Path(__file__).parents[1]


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr('sys.argv', ['/usr/bin/mmgroupnet', *words])
    console.main()


@pytest.mark.parametrize('words', [(), ('--help',), ('-h',)])
def test_the_help_lists_the_commands(words, monkeypatch, capsys):
    run(monkeypatch, *words)
    printed = capsys.readouterr().out
    for name, (_, what) in console.COMMANDS.items():
        assert f'  {name:<12}{what}\n' in printed


def test_the_version(monkeypatch, capsys):
    run(monkeypatch, '--version')
    assert capsys.readouterr().out == f'mmgroupnet {__version__}\n'


def test_the_help_imports_nothing_heavy():
    code = (
        'import sys; sys.argv = ["mmgroupnet"]\n'
        'from mmgroupnet.__main__ import main; main()\n'
        'print(sorted({"torch", "numpy", "mmengine", "mmcv", "mmdet"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'


@pytest.mark.parametrize('name', console.COMMANDS)
def test_a_command_prints_the_help_of_its_tool_under_its_own_name(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, name, '--help')
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'usage: mmgroupnet {name} ')


@pytest.mark.parametrize(('name', 'hint'), [('trian', " (did you mean 'train'?)"), ('zzz', '')])
def test_an_unknown_command_is_one_line(name, hint, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, name)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f'mmgroupnet: error: there is no command {name!r}{hint}: mmgroupnet --help lists them\n'
    )


def test_a_wrong_option_is_the_tools_own_error(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, 'pack', 'config.py', 'checkpoint.pth')
    assert capsys.readouterr().err.endswith('mmgroupnet pack: error: the following arguments are required: --out\n')


def test_a_command_does_what_its_tool_does(tmp_path, monkeypatch, capsys):
    """The commands also find a config by its name, from a folder outside the checkout."""
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, 'digits', '--num-train', '2', '--num-val', '1')
    assert 'digits: 2 training and 1 validation images are in data/digits' in capsys.readouterr().out
    run(monkeypatch, 'complexity', 'mmgroupnet::demo/fcos_groupnet_digits.py')
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ['total', '23', '10', '9,117,305']
    run(monkeypatch, 'config', 'mmgroupnet::demo/fcos_groupnet_digits.py')
    (tmp_path / 'whole.py').write_text(capsys.readouterr().out)
    whole, named = load_config('whole.py'), load_config('mmgroupnet::demo/fcos_groupnet_digits.py')
    assert whole.to_dict() == named.to_dict()


def test_configs_and_tools_are_those_of_the_checkout():
    assert shipped('configs').samefile(ROOT / 'configs') and shipped('tools').samefile(ROOT / 'tools')


def test_configs_and_tools_of_an_installation(tmp_path, monkeypatch):
    (tmp_path / '.mim' / 'tools').mkdir(parents=True)
    monkeypatch.setattr('mmgroupnet.shipped_files._PACKAGE', tmp_path)
    assert shipped('tools') == tmp_path / '.mim/tools'
