# What there is to run. `make` alone lists it. Each target installs what it lacks or says what to install.

# One directory and one profile for all of it, so that RocksDB and wasmtime are compiled once.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# Where rustup puts cargo, for shells that were opened before it was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin
TOOLS := $(HOME)/.cache/statehouse-tools

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## start three nodes, upload a machine, kill the leader with SIGKILL, go on, see all three equal
	@tests/demo.sh "$$CARGO_TARGET_DIR/release/statehouse"

.PHONY: test
test: prepare ## run all tests: of the host, of the guests, and of the committed components
	tests/guests/install rust c
	cargo test --release --locked --workspace
	CARGO_TARGET_DIR="$$CARGO_TARGET_DIR/guests" cargo test --release --locked --manifest-path guests/Cargo.toml
	CARGO_TARGET_DIR="$$CARGO_TARGET_DIR/guests" guests/build.sh --check

.PHONY: test-clients
test-clients: prepare ## compare with a real etcd, and run etcd's clients: etcdctl, Go, Python, Node, Rust, curl
	tests/etcd/install
	cargo test --release --locked --test etcd -- --include-ignored

.PHONY: test-guests
test-guests: prepare ## build machines in Rust, Go, JavaScript, TypeScript, Python, C and Zig, and run them
	tests/guests/install
	cargo test --release --locked --test cli -- --include-ignored languages:: gallery::the_counter stock::

.PHONY: build
build: prepare ## build the release binary
	cargo build --release --locked

.PHONY: bench
bench: prepare ## measure (criterion's reports are in target/criterion)
	cargo bench --profile release --locked

.PHONY: lint
lint: ## check the formatting, clippy's lints, and what is linked in (licences, sources, doubled crates)
	@.ci/prepare lint
	cargo fmt --check
	cargo fmt --check --manifest-path guests/Cargo.toml --all
	cargo clippy --release --locked --all-targets -- -D warnings
	$(TOOLS)/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

.PHONY: fmt
fmt: ## format the code, and wrap long comments and messages
	cargo fmt
	cargo fmt --manifest-path guests/Cargo.toml --all
	.ci/wrap $$(git ls-files '*.rs')

.PHONY: clean
clean: ## remove what was built
	cargo clean

.PHONY: prepare
prepare:
	@.ci/prepare
