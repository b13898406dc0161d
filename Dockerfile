# Seriatim's image: one static program on an empty root. `docker build -t seriatim .`
#
# Linked with glibc, statically: one file, and the allocator that all tests ran with.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Position-independent all the same (static-pie), so that the kernel loads it at a random address.
# With a target named, these flags are not for build scripts and macros, which can't be static.
ENV RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies, in a layer of their own, which holds until the manifest or the lock changes. All
# that the manifest names has to be there, be it empty.
COPY Cargo.toml Cargo.lock ./
RUN host=$(rustc -vV | sed -n 's/^host: //p') \
 && mkdir -p src benches tests/it \
 && touch src/lib.rs tests/it/main.rs \
 && echo 'fn main() {}' > src/main.rs \
 && sed -n '/^\[\[bench\]\]/,/^name/s/^name = "\(.*\)"/benches\/\1.rs/p' Cargo.toml | xargs touch \
 && cargo build --release --locked --target "$host" --bin seriatim

COPY src src
# The program, and what else the root has. cargo goes by the time of a file, and the sources are older
# than what was built without them.
RUN host=$(rustc -vV | sed -n 's/^host: //p') \
 && touch src/lib.rs src/main.rs \
 && cargo build --release --locked --target "$host" --bin seriatim \
 && mkdir -p /root-of-image/etc/seriatim \
 && mv "target/$host/release/seriatim" /root-of-image/ \
 && echo 'seriatim:x:65532:65532:Seriatim:/:/sbin/nologin' > /root-of-image/etc/passwd \
 && echo 'seriatim:x:65532:' > /root-of-image/etc/group \
 && /root-of-image/seriatim --version

FROM scratch
LABEL org.opencontainers.image.title="seriatim" \
      org.opencontainers.image.description="A sidecar reverse proxy that lets each chat session of an AI agent through one turn at a time" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /root-of-image /
# Nobody's, as a number: Kubernetes can then tell that it isn't root.
USER 65532:65532
# Where the configuration is mounted; names of files in it count from here.
WORKDIR /etc/seriatim
# Clients; and operators' machines, if admin.listen is more than the loopback.
EXPOSE 8080 9901
# It drains at SIGTERM.
STOPSIGNAL SIGTERM
# Whether it lives; that Redis is away is no reason to restart it. /readyz: without --live.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
  CMD ["/seriatim", "health", "--live", "--config", "/etc/seriatim/config.toml"]
ENTRYPOINT ["/seriatim"]
CMD ["run", "--config", "/etc/seriatim/config.toml"]
