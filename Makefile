# `make demo` and `make test` do all the set-up: they need Python 3.11+ with headers and a C compiler, nothing else.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
PY := $(VENV)/bin/python
CORE := setup.py pyproject.toml $(wildcard src/flare/_core/*.pyx src/flare/_core/*.pxd src/flare/_core/*.pxi src/flare/_core/includes/*)

.PHONY: help demo test test-pythons lab abuse interop bench bench-quick bench-quic bench-micro lint types fuzz wheel clean

help:
	@echo "make demo          two peers behind real NATs meet through a flare relay and go direct"
	@echo "make test          the tests (unit, protocol, hostile input); timings never fail them"
	@echo "make test-pythons  the same tests on every other Python from 3.11 to 3.14 found here"
	@echo "make lab           the NAT matrix, both makes of NAT (root, nftables)"
	@echo "make abuse         attacks on a relay beside an honest circuit, and what it keeps (root)"
	@echo "make interop       against go-, rust-, js- and py-libp2p (Go, Rust, Node; root for hole punching)"
	@echo "make bench         what a relay costs, beside go-, rust-, js- and py-libp2p and a C loop (17 minutes)"
	@echo "make bench-quic    QUIC beside go's and rust's"
	@echo "make bench-quick   a few minutes of that; make bench-micro: the parts, and how late a punch is"
	@echo "make lint          ruff, cython-lint, mypy --strict"
	@echo "make fuzz          every decoder, SECONDS each (default 20)"
	@echo "make wheel         build a wheel and try it in a clean environment"

# -- set-up --------------------------------------------------------------------------------------------------------

.stamps/venv: pyproject.toml
	@test -n "$(PYTHON)" || { echo "flare needs Python 3.11 or newer, and none was found (say PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -c 'import sysconfig, pathlib, sys; h = pathlib.Path(sysconfig.get_paths()["include"], "Python.h"); sys.exit(None if h.exists() else f"flare is compiled and needs the headers of Python: {h} is missing (Debian: apt install python3-dev)")'
	@command -v $${CC:-cc} >/dev/null || { echo "flare is compiled and needs a C compiler: no $${CC:-cc} here (Debian: apt install gcc)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade 'pip>=25.1'
	$(PY) -m pip install -q --group build
	@mkdir -p .stamps && touch $@

.stamps/build: .stamps/venv $(CORE)
	$(PY) -m pip install -q --no-build-isolation -e .
	@touch $@

.stamps/test: .stamps/build
	$(PY) -m pip install -q --group test
	@touch $@

.stamps/lint: .stamps/build
	$(PY) -m pip install -q --group lint --group test
	@touch $@

# -- what people run -----------------------------------------------------------------------------------------------

demo: .stamps/build
	$(PY) -m flare lab run port port --delay-ms 20 --demo

# The benchmark's C programs are tested where libcrypto's headers are (Debian: libssl-dev).
LIBCRYPTO := $(shell echo '\#include <openssl/evp.h>' | $${CC:-cc} -E - >/dev/null 2>&1 && echo yes)

test: .stamps/test
	@test -n "$(LIBCRYPTO)" || echo "no headers of libcrypto: the tests of the benchmark's C programs are left out"
	$(PY) -m pytest -q -m "not lab and not interop and not abuse$(if $(LIBCRYPTO),, and not bench)" $(ARGS)

test-pythons: .stamps/test
	tools/test-pythons

lab: .stamps/test
	@command -v nft >/dev/null || { echo "make lab compares with the kernel's NAT and needs nft (Debian: apt install nftables)"; exit 1; }
	@PATH="$$PATH:/usr/sbin" command -v miniupnpd >/dev/null || { echo "make lab maps ports on a real router's daemon and needs miniupnpd (Debian: apt install miniupnpd-nftables)"; exit 1; }
	@test "$$(id -u)" = 0 || { echo "make lab makes network namespaces and needs root"; exit 1; }
	$(PY) -m pytest -q -m "lab and not interop" --timeout 900 -p no:benchmark -n 3 --dist worksteal $(ARGS)
	@echo "each meeting of the matrices is a line of .stamps/lab-tcp.log, -quic and -any"
	$(PY) -m flare lab matrix --log .stamps/lab-tcp.log --nat both --expect --jobs 3
	$(PY) -m flare lab reach --nat both --expect --jobs 3
	$(PY) -m flare lab reach --nat kernel --expect --jobs 2 --lifetime --timeout 70 short port
	$(PY) -m flare lab matrix --log .stamps/lab-quic.log --transport quic --nat user --expect --jobs 3
	$(PY) -m flare lab matrix --log .stamps/lab-any.log --transport any --nat kernel --expect --jobs 3 none addr port port-rst sym

abuse: .stamps/test
	@test "$$(id -u)" = 0 || { echo "make abuse makes a network namespace and needs root"; exit 1; }
	$(PY) -m pytest -q -m abuse tests/abuse $(ARGS)

interop: .stamps/test
	@for tool in go cargo node npm; do command -v $$tool >/dev/null || { echo "make interop builds real peers and needs $$tool"; exit 1; }; done
	@test "$$(id -u)" = 0 || { echo "make interop punches holes between network namespaces and needs root"; exit 1; }
	FLARE_INTEROP_TABLE=docs/interop.md $(PY) -m pytest -q -m interop -p no:benchmark -n 3 --dist worksteal tests/interop $(ARGS)

bench: .stamps/test .stamps/libcrypto.so
	$(PY) -m benchmarks.relay --congestion reno --libcrypto .stamps/libcrypto.so --json docs/bench.json --publish $(ARGS)

# What AES-GCM costs from OpenSSL 3.1 on, where the interpreter's is older: a wheel that carries a newer one.
.stamps/libcrypto.so: .stamps/venv
	$(PY) -m pip download -q --no-deps --only-binary :all: -d .stamps/wheel psycopg-binary
	$(PY) -c 'import glob, zipfile; z = zipfile.ZipFile(glob.glob(".stamps/wheel/*.whl")[0]); \
		n = next(n for n in z.namelist() if "/libcrypto-" in n); open("$@", "wb").write(z.read(n))'

bench-quick: .stamps/test
	$(PY) -m benchmarks.relay --congestion reno --quick $(ARGS)

bench-quic: .stamps/test
	$(PY) -m benchmarks.quic $(ARGS)

bench-micro: .stamps/test
	$(PY) -m pytest -q benchmarks --benchmark-only --timeout 0 $(ARGS)
	$(PY) benchmarks/punch_lateness.py

lint: .stamps/lint types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/cython-lint src/flare/_core

types: .stamps/lint
	$(VENV)/bin/mypy

fuzz: .stamps/test
	$(PY) fuzz/run.py --seconds $(or $(SECONDS),20)

wheel: .stamps/venv
	rm -rf dist/*.whl .stamps/clean
	$(PY) -m pip wheel -q --no-build-isolation --no-deps -w dist .
	$(PYTHON) -m venv .stamps/clean
	.stamps/clean/bin/pip install -q dist/*.whl
	cd / && $(CURDIR)/.stamps/clean/bin/flare --version
	cd / && $(CURDIR)/.stamps/clean/bin/python -I $(CURDIR)/tests/wheel_smoke.py

clean:
	rm -rf build dist .stamps $(VENV) src/*.egg-info src/flare/_core/*.so
