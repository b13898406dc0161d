# Seriatim's image: one static program and its licences. `docker build -t seriatim .`
#
# The program is linked statically with glibc: it is a single file, and uses the allocator that the tests use.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# The program is position-independent (static-pie), so the kernel loads it at a random address. Because
# cargo gets a --target, these flags don't apply to build scripts and macros, which can't be static.
ENV RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies have their own layer, which is rebuilt only if Cargo.toml or Cargo.lock changes. Every file
# that Cargo.toml names must exist, so this step creates empty ones.
COPY Cargo.toml Cargo.lock ./
RUN host=$(rustc -vV | sed -n 's/^host: //p') \
 && mkdir -p src benches tests/it \
 && touch src/lib.rs tests/it/main.rs \
 && echo 'fn main() {}' > src/main.rs \
 && sed -n '/^\[\[bench\]\]/,/^name/s/^name = "\(.*\)"/benches\/\1.rs/p' Cargo.toml | xargs touch \
 && cargo build --release --locked --target "$host" --bin seriatim

# The licences of the program and of what it contains.
COPY LICENSE ./
COPY .ci/licenses .ci/
RUN mkdir -p /root-of-image/usr/share/doc/seriatim \
 && cp LICENSE /root-of-image/usr/share/doc/seriatim/ \
 && .ci/licenses > /root-of-image/usr/share/doc/seriatim/THIRD-PARTY-LICENSES

COPY src src
# `seriatim errors` prints it.
COPY docs/troubleshooting.md docs/
# The program, and the other files of the image. cargo compares file times, and the sources are older than
# the build of the empty files, so `touch` makes them newer.
RUN host=$(rustc -vV | sed -n 's/^host: //p') \
 && touch src/lib.rs src/main.rs \
 && cargo build --release --locked --target "$host" --bin seriatim \
 && mkdir -p /root-of-image/etc/seriatim \
 && mv "target/$host/release/seriatim" /root-of-image/ \
 && echo 'seriatim:x:65532:65532:Seriatim:/:/sbin/nologin' > /root-of-image/etc/passwd \
 && echo 'seriatim:x:65532:' > /root-of-image/etc/group \
 && /root-of-image/seriatim --version

FROM scratch
# Where the sources are, and the commit: `--build-arg REVISION=$(git rev-parse HEAD)`.
ARG REPOSITORY=https://git.example.com/seriatim
ARG REVISION=
LABEL org.opencontainers.image.title="seriatim" \
      org.opencontainers.image.description="A sidecar reverse proxy that runs the turns of each chat session of an AI agent one at a time" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="$REPOSITORY" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /root-of-image /
# A user without rights. It is a number, so that Kubernetes can check that it isn't root.
USER 65532:65532
# The configuration is mounted here. Relative paths in it start here.
WORKDIR /etc/seriatim
# The port for clients, and the admin port, if admin.listen isn't a loopback address.
EXPOSE 8080 9901
# SIGTERM starts the drain.
STOPSIGNAL SIGTERM
# Liveness: it doesn't check Redis, because a restart doesn't repair Redis. Without --live: readiness.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
  CMD ["/seriatim", "health", "--live", "--config", "/etc/seriatim/config.toml"]
# Other commands run in the same way: `docker run --rm IMAGE completions bash`, `docker run --rm IMAGE man`.
ENTRYPOINT ["/seriatim"]
CMD ["run", "--config", "/etc/seriatim/config.toml"]
