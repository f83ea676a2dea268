"""Only what pyproject.toml cannot declare: the compiled extensions and their debug and coverage switches.

FLARE_DEBUG=1     -O0 -g, bounds checks everywhere
FLARE_COVERAGE=1  line tracing for coverage's Cython plugin
"""

import os
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FLARE_DEBUG") == "1"
COVERAGE = os.environ.get("FLARE_COVERAGE") == "1"

CORES = os.cpu_count() or 1

flags = ["-O0", "-g"] if DEBUG else ["-O3", "-fno-strict-aliasing"]
macros = [("CYTHON_TRACE_NOGIL", "1")] if COVERAGE else []

extensions = [
    Extension(
        "flare._core." + Path(path).stem,
        [path],
        extra_compile_args=[*flags, "-Wall", "-Wno-unused-function", "-Wno-unused-variable"],
        define_macros=macros,
        libraries=["dl"] if os.uname().sysname == "Linux" else [],
    )
    for path in sorted(glob("src/flare/_core/*.pyx"))
]

setup(
    options={"build_ext": {"parallel": CORES}},
    ext_modules=cythonize(
        extensions,
        include_path=["src"],
        build_dir="build/cython",
        nthreads=CORES,
        compiler_directives={
            "language_level": 3,
            "boundscheck": True,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
            "linetrace": COVERAGE,
        },
    ),
)
