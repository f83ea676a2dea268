"""The public API is typed: a user's program passes mypy --strict, and its mistakes are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(300)
def test_a_program_of_a_user_passes_strict_mypy(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # outside of the checkout, as a user's is
    program.write_text((Path(__file__).parent / "program.py").read_text())
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--cache-dir",
            ROOT / ".mypy_cache",
            program,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
