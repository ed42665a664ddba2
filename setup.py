"""Packaging of mmgroupnet; imports neither torch nor the package."""

import os
import platform
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
# What MIM looks for inside an installed OpenMMLab package.
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')
EXTRAS = ('mim', 'mmdet', 'mmseg', 'mmpretrain', 'onnx', 'demo', 'tests', 'lint', 'benchmark')


class BuildWithMim(build_py):
    """Adds ``mmgroupnet/.mim`` with the configs, the tools and the model index.

    OpenMMLab's own setup files look for ``develop`` or ``bdist_wheel`` in ``sys.argv``, which misses editable installs
    since PEP 660. This command runs for all of them: a wheel gets copies, an editable install links to the checkout.
    """

    def run(self) -> None:
        super().run()
        package = self.get_package_dir('mmgroupnet') if self.editable_mode else f'{self.build_lib}/mmgroupnet'
        target = Path(package) / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # a former build may have left files that are gone by now
        target.mkdir(parents=True)
        for name in MIM_CONTENT:
            source = ROOT / name
            if self.editable_mode:
                (target / name).symlink_to(source)
            elif source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__', '*.py[cod]'))
            else:
                shutil.copy2(source, target / name)


# The packed kernels (csrc/). With contraction, floats would differ between instruction sets. The warning about how wide
# vectors are passed (psabi) does not apply: none is passed between files.
KERNEL_FLAGS = [
    '-std=c++20',
    '-O3',
    '-g0',
    '-Wall',
    '-Wno-psabi',
    '-ffp-contract=off',
    '-fvisibility=hidden',
    '-fopenmp',
]
# GCC 12 warns of its own intrinsics (its bug 105593).
AVX512_FLAGS = [
    '-mavx512f',
    '-mavx512bw',
    '-mavx512vl',
    '-mprefer-vector-width=512',
    '-Wno-maybe-uninitialized',
    '-Wno-uninitialized',
]
# One file per instruction set; the library chooses among them when it is loaded.
INSTRUCTION_SET_FLAGS = {
    'avx2.cpp': ['-mavx2'],
    'avx512bw.cpp': AVX512_FLAGS,
    'avx512.cpp': [*AVX512_FLAGS, '-mavx512vpopcntdq'],
}


class BuildKernels(build_ext):
    """Compiles csrc/ into ``mmgroupnet/ops/_kernels.so``, a plain shared library that knows neither Python nor torch.

    It is optional: without a compiler the package installs, and packed models run simulated.
    """

    def get_ext_filename(self, fullname: str) -> str:
        return f'{fullname.replace(".", os.sep)}.so'

    def build_extension(self, ext: Extension) -> None:
        is_x86 = platform.machine().lower() in ('x86_64', 'amd64')
        objects = []

        def compile_source(source: str, flags: list[str]) -> None:
            objects.extend(
                self.compiler.compile(
                    [source], output_dir=self.build_temp, extra_postargs=KERNEL_FLAGS + flags, depends=ext.depends
                )
            )

        for source in ext.sources:
            flags = INSTRUCTION_SET_FLAGS.get(Path(source).name, []) if is_x86 else []
            try:
                compile_source(source, flags)
            except CompileError:
                if not flags:
                    raise
                self.warn(f'this compiler cannot compile {source} with {" ".join(flags)}: these kernels are left out')
                compile_source(source, [])
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=['-fopenmp'], target_lang='c++'
        )


class Wheel(bdist_wheel):
    """A wheel for any Python 3, since the kernels know none."""

    def get_tag(self) -> tuple[str, str, str]:
        return 'py3', 'none', super().get_tag()[2]


def kernels() -> Extension:
    """The extension; a list of sources relative to this file, as setuptools wants them."""

    def files(pattern: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'csrc').glob(pattern))

    sources = files('*.cpp') + files('onnxruntime/glibc.cpp')
    return Extension('mmgroupnet.ops._kernels', sources, depends=files('*.h'), language='c++', optional=True)


def read_version() -> str:
    """Version from ``mmgroupnet/version.py``, without importing the package (and torch with it)."""
    scope = {}
    exec((ROOT / 'mmgroupnet' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def read_requirements(name: str) -> list[str]:
    """Requirements in ``requirements/{name}.txt``, one per line, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in (line.partition('#')[0].strip() for line in lines) if line]


extras = {name: read_requirements(name) for name in EXTRAS}
extras['all'] = sorted({requirement for requirements in extras.values() for requirement in requirements})
# Not among all: the forks have the same modules as what those ask for.
extras['onedl'] = read_requirements('onedl')

setup(
    name='mmgroupnet',
    version=read_version(),
    description='Group-Net: structured binary neural networks for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords='computer vision, object detection, binary neural networks, quantization',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmgroupnet', 'mmgroupnet.*']),
    python_requires='>=3.11',
    install_requires=read_requirements('runtime'),
    extras_require=extras,
    entry_points={'console_scripts': ['mmgroupnet = mmgroupnet.__main__:main']},
    ext_modules=[kernels()],
    cmdclass={'build_py': BuildWithMim, 'build_ext': BuildKernels, 'bdist_wheel': Wheel},
    zip_safe=False,
)
