# One image with all programs of the system; docker-compose.yml says which one a container runs.

FROM rust:1.95.0-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends libssl-dev pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# SQL is checked against the committed .sqlx/: no database is needed to build.
ENV SQLX_OFFLINE=true
# As `cargo xtask bench` builds: by what the programs were seen to execute (`cargo xtask pgo`, with this very version of rustc).
ENV RUSTFLAGS="-Cprofile-use=/src/xtask/dist.profdata -Cllvm-args=-no-pgo-warn-mismatch"
RUN cargo build --profile dist --locked --bin setup --bin api --bin token-worker --bin reservation-worker --bin payment-worker \
    && mkdir /programs \
    && cd target/dist \
    && cp setup api token-worker reservation-worker payment-worker /programs

FROM debian:bookworm-slim
# curl is for the health checks.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home boxoffice
COPY --from=build /programs/ /usr/local/bin/
USER boxoffice
CMD ["api"]
