# `make help` lists what there is. Scripts do the work; see hack/.

PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR    ?=
CARGO      ?= cargo
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR

# Statically linked: the shim runs on any distribution, in any image of a node. crt-static must not
# reach build scripts and procedural macros, which an explicit target keeps apart.
ARCH       := $(shell uname -m)
TRIPLE     := $(ARCH)-unknown-linux-gnu
BINARIES   := containerd-shim-diffkeeper-v1 diffkeeper
RELEASE    := $(CARGO_TARGET_DIR)/release
IMAGE      ?= ghcr.io/diffkeeper/diffkeeper:$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

.DEFAULT_GOAL := help
.PHONY: build image install uninstall demo test test-unit test-e2e test-vm test-kernels bench bench-delta bench-capture soak lint clean help setup

build: ## build the shim and the command line, statically linked
	@command -v protoc >/dev/null || { echo "protoc is needed (containerd's API): apt-get install protobuf-compiler"; exit 1; }
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --target $(TRIPLE) $(BINARIES:%=--bin %)
	@for binary in $(BINARIES); do \
	    install -D $(CARGO_TARGET_DIR)/$(TRIPLE)/release/$$binary $(RELEASE)/$$binary || exit; \
	done
	@ls -l $(BINARIES:%=$(RELEASE)/%)

install: ## install what was built below PREFIX (/usr/local), and an example configuration
	@test -x $(RELEASE)/diffkeeper || { echo "nothing is built yet: run make build first (not as root)"; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SYSCONFDIR)/diffkeeper
	install -m 0755 $(BINARIES:%=$(RELEASE)/%) $(DESTDIR)$(PREFIX)/bin/
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,/usr/local/bin,$(PREFIX)/bin,' deploy/diffkeeper-keeper.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/diffkeeper-keeper.service
	@test -e $(DESTDIR)$(SYSCONFDIR)/diffkeeper/config.toml || \
	    install -m 0644 config.toml.example $(DESTDIR)$(SYSCONFDIR)/diffkeeper/config.toml
	@echo "installed; containerd or Docker is told by: diffkeeper install (--docker); see --dry-run"

image: build ## build the image of deploy/'s DaemonSet, with docker
	docker build -f deploy/Dockerfile -t $(IMAGE) $(RELEASE)

uninstall: ## remove what install put there; configuration and kept state stay
	rm -f $(BINARIES:%=$(DESTDIR)$(PREFIX)/bin/%) $(DESTDIR)$(PREFIX)/lib/systemd/system/diffkeeper-keeper.service
	@echo "left in place: $(SYSCONFDIR)/diffkeeper and /var/lib/diffkeeper (what your containers wrote)"

demo: setup ## a database is killed while it writes, removed, started again: every row is there
	@hack/demo

test: test-unit test-e2e ## all tests in their short form

test-unit: setup ## tests that need neither root nor containerd
	@hack/test unit

test-e2e: setup build ## tests on a real, private containerd (root)
	@hack/test e2e

soak: setup build ## the long forms of the tests: repetitions by the thousand
	@hack/test soak

test-vm: setup build ## on Debian's kernel with cgroup v2 alone, and after power cuts (QEMU, slow)
	@hack/setup qemu
	@hack/vm e2e parity calls::metrics calls::limits keeps::everything kills
	@hack/vm powercut

test-kernels: setup build ## what depends on the kernel: Debian's 6.1 and 6.12, cgroup v2 and v1 (QEMU, very slow)
	@hack/setup qemu
	@hack/vm kernels

bench: setup build ## speed and size beside the stock shim, restic and borg, as tables (root)
	@hack/setup bench
	@hack/test bench

bench-delta: ## speed of cutting, hashing and encoding, and what 20 versions take beside restic and borg, as tables
	BENCH_ONLY=delta $(CARGO) bench -p diffkeeper-integration --bench delta --bench sizes

bench-capture: setup build ## what a commit costs: small changes among a million entries, how long a container stands still (root)
	@hack/test bench-capture

lint: ## formatting, clippy, documentation, shell scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps
	@if command -v shellcheck >/dev/null; then hack/scripts | xargs shellcheck -x -P .; \
	 else echo "shellcheck is not installed: shell scripts are not checked"; fi

clean: ## remove what was built and downloaded
	rm -rf target
	$(CARGO) clean

setup: # what the other targets need on this machine; part of them
	@hack/setup

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
