"""Which library does the work: the interpreter's own libcrypto, or `cryptography` with the same results."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from flare._core import aead, libcrypto

ROOT = Path(__file__).parents[2]
FALLBACK = {**os.environ, "FLARE_AEAD": "cryptography", "PYTHONPATH": str(ROOT / "src")}


def test_finds_the_libcrypto_of_the_ssl_module() -> None:
    found = libcrypto.find()
    assert found is not None
    assert found.version == ssl.OPENSSL_VERSION
    assert all(found.symbols[name] for name in libcrypto.REQUIRED)


def test_a_library_without_the_symbols_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcrypto, "REQUIRED", (*libcrypto.REQUIRED, "EVP_no_such_function"))
    assert libcrypto.find() is None


def test_another_version_than_that_of_ssl_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", "OpenSSL 9.9.9")
    assert libcrypto.find() is None


def test_an_ssl_module_built_into_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["_ssl"], "__file__")
    found = libcrypto.find()  # this interpreter exports no OpenSSL of its own, unless one was preloaded
    assert found is None or found.version == ssl.OPENSSL_VERSION


def test_the_interpreters_libcrypto_is_preferred() -> None:
    if os.environ.get("FLARE_AEAD") != "cryptography":
        assert aead.backend() == "libcrypto " + ssl.OPENSSL_VERSION.removeprefix("OpenSSL ").split()[0]


class TestAnotherFile:
    """FLARE_LIBCRYPTO."""

    @staticmethod
    def backend(path: str) -> subprocess.CompletedProcess[str]:
        code = "from flare._core import aead; print(aead.backend())"
        environment = {**os.environ, "FLARE_LIBCRYPTO": path, "PYTHONPATH": str(ROOT / "src")}
        environment.pop("FLARE_AEAD", None)
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)

    def test_is_taken_where_it_has_the_symbols(self) -> None:
        module = sys.modules["_ssl"].__file__  # which depends on a libcrypto, so that the symbols are found
        assert module is not None
        assert self.backend(module).stdout.startswith("libcrypto ")

    def test_is_refused_in_words_where_it_has_not(self) -> None:
        done = self.backend(str(Path(aead.__file__)))
        assert "is no libcrypto that flare can use" in done.stderr
        assert done.returncode != 0

    def test_a_file_that_is_not_there(self) -> None:
        assert "FLARE_LIBCRYPTO: " in self.backend("/nowhere/libcrypto.so").stderr


class TestFallback:
    def test_is_chosen_by_the_environment(self) -> None:
        code = "from flare._core import aead; print(aead.backend())"
        done = subprocess.run([sys.executable, "-c", code], env=FALLBACK, capture_output=True, timeout=30)
        assert (done.stdout, done.stderr) == (b"cryptography\n", b"")

    def test_passes_every_test_of_records(self) -> None:
        records = str(ROOT / "tests/core/test_aead.py")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", records]
        done = subprocess.run(command, env=FALLBACK, cwd=ROOT, capture_output=True, text=True, timeout=55)
        assert done.returncode == 0, done.stdout
