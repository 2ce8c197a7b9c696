# syntax=docker/dockerfile:1
# `./x image` runs the steps of the first two stages without Docker, in a clean copy: their RUN lines keep to paths below
# their WORKDIR.
FROM node:22-bookworm-slim AS web
WORKDIR /src/web
COPY web/package.json web/package-lock.json web/.npmrc ./
RUN --mount=type=cache,target=/root/.npm npm ci --ignore-scripts
COPY web ./
RUN npm run build

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
COPY --from=web /src/web/dist web/dist
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist -p couponbook \
    && cp target/dist/couponbook couponbook

FROM debian:bookworm-slim
# By its number, so that who runs it can see that it is not root.
RUN useradd --system --uid 10001 --no-create-home couponbook
# Whom a client command trusts that talks to an https address.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/couponbook /usr/local/bin/couponbook
USER 10001
ENV COUPONBOOK_LISTEN=0.0.0.0:8080 COUPONBOOK_LOG_FORMAT=json
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["couponbook"]
CMD ["api"]
