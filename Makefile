# What people type. Every target works from a fresh clone; `make help` lists them.

SHELL := /bin/sh
CARGO ?= cargo
# Where cargo builds; the scripts below look there.
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# cargo-nextest when it is installed, and cargo's own test runner when not.
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: help demo test build release packages test-packages bench guarantees soak walk fuzz guest nats-server tools test-tools fmt lint docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

demo: build nats-server ## three agents on this machine, one script, the answers; stops by itself
	TARGET_DIR='$(TARGET_DIR)' packaging/demo.sh

test: test-tools nats-server ## the whole test suite
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace --no-fail-fast
	$(CARGO) test --workspace --doc
else
	$(CARGO) test --workspace
endif

build: tools ## debug programs in target/debug
	$(CARGO) build --workspace

release: tools ## optimised programs; the agent static
	CARGO='$(CARGO)' packaging/build-release.sh

bench: release nats-server ## the benchmark: ratios to the floor, gates nothing
	$(CARGO) bench --package sally-tests --bench bench -- $(BENCH)

packages: tools ## deb and rpm of agent, command line and controller, into build/packages (ARCH=amd64 or arm64)
	ARCH='$(ARCH)' CARGO='$(CARGO)' packaging/build-packages.sh

test-packages: ## looks at the units, and at what `make packages` made
	packaging/test-packages.sh

guarantees: test-tools nats-server ## every fault against every promise; writes the table of docs/guarantees.md
	CARGO='$(CARGO)' packaging/faults.sh guarantees

soak: test-tools nats-server ## faults at random for SOAK_MINUTES (30), over three brokers, synced and not
	CARGO='$(CARGO)' packaging/faults.sh soak

walk: test-tools nats-server ## one schedule of faults again: SALLY_SEED=N make walk
	CARGO='$(CARGO)' packaging/faults.sh walk

fuzz: tools ## any bytes at every parser, FUZZ_SECONDS (20) each
	CARGO='$(CARGO)' packaging/fuzz.sh

guest: test-tools ## the sandbox in an emulated guest: systemd, delegation, control groups of version 2
	CARGO='$(CARGO)' tests/guest/run.sh

nats-server: ## a suitable broker into build/, nothing on the system is touched
	@packaging/get-nats-server.sh

tools: ## says what is missing to build
	@packaging/check-tools.sh

test-tools: ## says what is missing to test
	@packaging/check-tools.sh test

fmt: ## formats the code
	$(CARGO) fmt --all

lint: tools ## format and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

docs: tools ## API documentation, warnings denied
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --workspace --document-private-items

clean: ## removes what was built, the broker's copy too
	$(CARGO) clean
	rm -rf build
