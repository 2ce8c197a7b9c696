# syntax=docker/dockerfile:1
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
    && cp target/dist/couponbook /couponbook

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home couponbook
COPY --from=build /couponbook /usr/local/bin/couponbook
USER couponbook
ENV COUPONBOOK_LISTEN=0.0.0.0:8080 COUPONBOOK_LOG_FORMAT=json
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["couponbook"]
CMD ["api"]
