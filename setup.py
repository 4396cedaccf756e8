"""Build mmfast._C; everything else is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

# Neither -march=native (a wheel must run on other machines: the tier files carry their own target) nor
# -ffast-math (it breaks NaN checks and the screen's bounds). Products and sums are never fused, so that every
# tier returns the same bits.
FLAGS = ["-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]

ParallelCompile("MMFAST_BUILD_JOBS", default=0).install()
setup(
    ext_modules=[
        Pybind11Extension(
            "mmfast._C",
            sorted(glob("csrc/**/*.cpp", recursive=True)),
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=FLAGS,
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
