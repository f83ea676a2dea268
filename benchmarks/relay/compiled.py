"""The C programs beside this file, compiled when they are needed and newer than what is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BUILT = HERE / "target"  # which .gitignore names


def compiled(name: str) -> Path:
    """The program made of `name`.c, which needs a C compiler and libcrypto's headers (Debian: libssl-dev)."""
    source, program = HERE / f"{name}.c", BUILT / name
    newest = max(file.stat().st_mtime for file in (source, *HERE.glob("*.h")))
    if not program.exists() or program.stat().st_mtime < newest:
        BUILT.mkdir(exist_ok=True)
        compiler = os.environ.get("CC", "cc").split()
        words = [*compiler, "-O3", "-Wall", "-o", str(program), str(source), "-lcrypto"]
        if subprocess.run(words, check=False).returncode:
            raise RuntimeError(
                f"{source.name} does not compile: it needs a C compiler and libcrypto's headers"
            )
    return program
