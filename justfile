# The commands that people and CI run. Each is one plain command, so `just` is a convenience, not a need.

# Formatting, lints and documentation, warnings as errors.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# All tests, doc tests included.
test:
    cargo test --workspace

# The chart: lint, all files of values, what is refused, and that the plain manifests are its defaults (builds Helm with Go, once).
check-deploy:
    TEST_HELM=$(scripts/helm install) cargo test -p keydb-cli --test kubernetes

# Dashboard, alerts and what nodes and operators measure (gets promtool, once).
check-metrics:
    TEST_PROMTOOL=$(scripts/promtool install) cargo test -p keydb-cli --test metrics

# Writes docs/metrics.md anew.
metrics-docs:
    UPDATE_DOCS=1 cargo test -p keydb-core --test metrics_docs

# Writes the plain manifests anew: the chart with its defaults.
manifests:
    scripts/helm manifests > deploy/kubernetes/keydb.yaml

# An hour of kills of one node, and an hour of scaling while nodes, links and storage fail. `TORTURE_SEED=` repeats what a run printed.
torture seconds="3600" kills="4000":
    TORTURE_KILLS={{kills}} cargo test --release -p keydb-cli --test torture -- --nocapture --test-threads 1
    TORTURE_SECONDS={{seconds}} scripts/minio with cargo test --release -p keydb-cli --test scaling -- --nocapture --test-threads 1

# An hour through all doors: no call fails, and memory stays what it is.
soak seconds="3600":
    SOAK_SECONDS={{seconds}} cargo test --release -p keydb-cli --test soak -- --nocapture

# Every fault at every step of a move of ranges. `just failpoints move.seal` has those with that in their names.
failpoints faults="all":
    FAULTS={{faults}} cargo test --release -p keydb-cli --test failpoints -- --nocapture

# The key set beside hashbrown and plain random reads of memory (100 M keys, 6 GiB).
bench *arguments:
    cargo bench -p keydb-core --bench engine -- {{arguments}}

# Valkey and a KeyDB node on the same keys.
compare *arguments:
    scripts/compare-valkey {{arguments}}

# A three-node cluster in this terminal.
dev *arguments:
    cargo run --release -- dev {{arguments}}

# The engine's tests under AddressSanitizer (needs a nightly toolchain).
asan:
    RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p keydb-core --lib --target "$(rustc -vV | sed -n 's/host: //p')" --target-dir target/asan keyset

# The engine's tests under Miri (needs a nightly toolchain with miri).
miri:
    cargo +nightly miri test -p keydb-core --lib keyset

# Snapshot files and journal records beside plain copying and sorting (30 M keys, 4 GiB).
bench-formats *arguments:
    cargo bench -p keydb-core --bench snapshot -- {{arguments}}

# What TLS costs: the same load on a plain cluster and on one with TLS.
bench-tls *arguments:
    scripts/bench-tls {{arguments}}

# The cluster map of a large cluster: its size, and how long it takes to read, write and plan it.
bench-map *arguments:
    cargo bench -p keydb-core --bench cluster_map -- {{arguments}}

# How long a large cluster takes to publish a scaling operation, with storage simulated.
bench-map-writers *arguments:
    cargo bench -p keydb-storage --bench map_writers -- {{arguments}}

# The journal's group commit beside plain appending and syncing on the disk of this folder.
bench-journal *arguments:
    cargo bench -p keydb-node --bench journal -- {{arguments}}

# One fuzz target for a minute, from the committed corpus (needs a nightly toolchain and cargo-fuzz).
fuzz target *arguments:
    mkdir -p fuzz/target/corpus/{{target}}
    cargo +nightly fuzz run {{target}} fuzz/target/corpus/{{target}} fuzz/corpus/{{target}} -- -max_total_time=60 {{arguments}}

# Keys as text over gRPC and HTTP beside the routing client and a bare echo.
bench-doors *arguments:
    cargo bench -p keydb-gateway --bench doors -- {{arguments}}

# Writes the settings' reference, docs/settings.md, anew from the code.
docs:
    UPDATE_DOCS=1 cargo test -p keydb-cli --bin keydb settings::reference

# Each link of the documentation leads somewhere, each page is in the book (needs lychee).
check-docs:
    scripts/check-docs

# The user's guide as a book, in ./book (needs mdbook: cargo install --locked mdbook).
book:
    mdbook build
