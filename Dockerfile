# syntax=docker/dockerfile:1
# KeyDB: nodes, operators and all commands, as one binary.
#
#   docker build -t keydb:local .
#   docker buildx build --platform linux/amd64,linux/arm64 -t registry.example.com/keydb:0.1.0 --push .

FROM rust:1.95-slim-bookworm AS build
ARG TARGETPLATFORM
WORKDIR /src
# What the commands need: no tests, no documentation. .dockerignore names it once more, so that nothing else is even sent.
COPY Cargo.toml Cargo.lock ./
COPY proto proto
COPY crates crates
COPY tests tests
ENV CARGO_TERM_COLOR=never CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols
# Downloaded crates and compiled dependencies stay in caches between builds, the latter for each platform apart. The binary leaves
# the cache by a copy, since a cache is no part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,id=keydb-target-$TARGETPLATFORM,sharing=locked \
    cargo build --release --locked -p keydb-cli --bin keydb \
    && cp target/release/keydb /usr/local/bin/keydb
# A new volume that is mounted here takes over this owner.
RUN install --directory --owner=65532 --group=65532 --mode=0750 /data

# The C library and the authorities' certificates, and neither a shell nor a package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="KeyDB" \
      org.opencontainers.image.description="A key-existence store: has this key been seen in the last N days?" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /usr/local/bin/keydb /usr/local/bin/keydb
COPY --from=build --chown=65532:65532 /data /var/lib/keydb
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
# The only place that is written to: the root file system may be read-only. A directory of its own, since a volume's top may have
# others' files in it, such as lost+found.
WORKDIR /var/lib/keydb
ENV KEYDB_DATA_DIR=/var/lib/keydb/data
EXPOSE 50051 50080 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/local/bin/keydb", "health"]
ENTRYPOINT ["/usr/local/bin/keydb"]
CMD ["node"]
