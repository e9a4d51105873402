# Build: only what compiling needs. No native modules, so one build serves every platform.
FROM node:24-bookworm-slim AS build
WORKDIR /pgweir
COPY package.json package-lock.json ./
RUN npm install --no-save --omit=optional --ignore-scripts --no-fund --no-audit
COPY tsconfig.json tsconfig.build.json ./
COPY src ./src
RUN node node_modules/typescript/bin/tsc -p tsconfig.build.json && npm prune --omit=dev --ignore-scripts

FROM node:24-bookworm-slim
LABEL org.opencontainers.image.title="pgweir" org.opencontainers.image.licenses="MIT"
ENV NODE_ENV=production
WORKDIR /pgweir
COPY --from=build /pgweir/package.json ./
COPY --from=build /pgweir/node_modules ./node_modules
COPY --from=build /pgweir/dist ./dist
COPY src/ops/dashboard ./src/ops/dashboard
USER node
EXPOSE 6432 9432
STOPSIGNAL SIGTERM
# The configuration is mounted at /etc/pgweir; without it the process exits with 2 instead of serving nothing.
ENTRYPOINT ["node", "--max-semi-space-size=8", "dist/cli.js"]
CMD ["serve", "--config", "/etc/pgweir/pgweir.yaml"]
# The root may be read-only: what is kept is kept in state.dir, if there is one.
HEALTHCHECK --interval=10s --timeout=5s CMD ["node", "dist/cli.js", "status", "--quiet", "--config", "/etc/pgweir/pgweir.yaml"]
