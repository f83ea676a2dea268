"""Where the interpreter's own libcrypto keeps its EVP functions: addresses for C, nothing linked or bundled.

The look-up asks the dynamic linker for symbols in the file of the `_ssl` module and in what that file depends
on, so it finds the very libcrypto that `ssl` uses even when another copy is loaded. A static build of `_ssl`
that exports its OpenSSL is found the same way; one built into the interpreter is looked for in the program.

FLARE_LIBCRYPTO in the environment names another file to take instead, such as a newer OpenSSL's than the
interpreter's: AES-GCM costs half from 3.1 on, where the CPU has VAES.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

REQUIRED = (
    "EVP_CIPHER_CTX_new",
    "EVP_CIPHER_CTX_free",
    "EVP_CIPHER_CTX_ctrl",
    "EVP_CipherInit_ex",
    "EVP_CipherUpdate",
    "EVP_CipherFinal_ex",
    "EVP_chacha20_poly1305",
    "EVP_aes_128_gcm",
    "EVP_aes_256_gcm",
    "OpenSSL_version",
)
OPTIONAL = (
    "EVP_CIPHER_fetch",  # OpenSSL 3: an algorithm looked up once instead of at every new context
    "HMAC",  # for the keys of TLS, which Python can make too
    "EVP_sha256",
    "EVP_sha384",
    "EVP_aes_128_ecb",  # for QUIC's headers, which aioquic protects too
    "EVP_aes_256_ecb",
    "EVP_chacha20",
)
# What handshake.pyx calls, in its order; without any of them flare.transport.noise does the work.
HANDSHAKE = (
    "SHA256_Init",
    "SHA256_Update",
    "SHA256_Final",
    "EVP_PKEY_new_raw_private_key",
    "EVP_PKEY_new_raw_public_key",
    "EVP_PKEY_get_raw_public_key",
    "EVP_PKEY_free",
    "EVP_PKEY_CTX_new",
    "EVP_PKEY_CTX_free",
    "EVP_PKEY_derive_init",
    "EVP_PKEY_derive_set_peer_ex",
    "EVP_PKEY_derive",
    "RAND_bytes",
    "ERR_clear_error",
)


class Libcrypto(NamedTuple):
    """A libcrypto: its version, as it tells it, and each symbol's address (0: optional, missing)."""

    version: str
    symbols: dict[str, int]


def find() -> Libcrypto | None:
    """The libcrypto that `ssl` uses, or None where its symbols can't be reached.

    With FLARE_LIBCRYPTO the one of that file; ImportError when it is none that can be used.
    """
    # cffi's backend itself: the cffi package would import a C parser (60 ms) for one declaration
    backend: Any = import_module("_cffi_backend")
    if path := os.environ.get("FLARE_LIBCRYPTO"):
        return _named(backend, path)
    for library in _libraries(backend):
        symbols = _symbols(backend, library)
        if symbols is not None and _version(backend, symbols["OpenSSL_version"]) == ssl.OPENSSL_VERSION:
            _kept.append(library)
            return Libcrypto(ssl.OPENSSL_VERSION, symbols)
    return None


def _named(backend: Any, path: str) -> Libcrypto:
    try:
        library = backend.load_library(path, os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise ImportError(f"FLARE_LIBCRYPTO: {error}") from None
    symbols = _symbols(backend, library)
    if symbols is None:
        raise ImportError(f"FLARE_LIBCRYPTO: {path} is no libcrypto that flare can use")
    _kept.append(library)
    return Libcrypto(_version(backend, symbols["OpenSSL_version"]), symbols)


_kept: list[Any] = []  # closing a library would let it be unmapped


def _libraries(backend: Any) -> Iterator[Any]:
    path: str | None = getattr(import_module("_ssl"), "__file__", None)
    for candidate in (path, None) if path else (None,):
        try:
            yield backend.load_library(candidate, os.RTLD_NOW | os.RTLD_NOLOAD if candidate else os.RTLD_NOW)
        except OSError:
            continue


def _symbols(backend: Any, library: Any) -> dict[str, int] | None:
    function = backend.new_function_type((), backend.new_void_type())
    integer = backend.new_primitive_type("uintptr_t")
    found: dict[str, int] = {}
    for name in REQUIRED + OPTIONAL + HANDSHAKE:
        try:
            found[name] = int(backend.cast(integer, library.load_function(function, name)))
        except AttributeError:
            if name in REQUIRED:
                return None
            found[name] = 0
    return found


def _version(backend: Any, address: int) -> str:
    text = backend.new_pointer_type(backend.new_primitive_type("char"))
    number = backend.new_primitive_type("int")
    version = backend.cast(backend.new_function_type((number,), text), address)
    told: bytes = backend.string(version(0))
    return told.decode("ascii", "replace")
