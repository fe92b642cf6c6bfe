# The one image of this project: code location, webserver, daemon, workers and jobs differ in their command alone.

FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
# The dependencies change less often than the code: a layer of their own, each file checked against its hash.
COPY requirements.lock ./
RUN pip install --require-hashes --no-deps -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY sql ./sql
COPY analytics_pipeline ./analytics_pipeline
# Editable: the migrations in sql/ are found beside the package, as in a checkout.
RUN pip install --no-deps --no-build-isolation --editable . \
    && python -m compileall -q analytics_pipeline /venv/lib

FROM python:3.11.13-slim-bookworm
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DAGSTER_HOME=/dagster \
    DAGSTER_DISABLE_TELEMETRY=1 \
    GX_ANALYTICS_ENABLED=false
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /dagster --shell /usr/sbin/nologin analytics \
    && install -d -o analytics -g analytics /dagster
COPY --from=build /venv /venv
COPY --from=build /app /app
COPY dagster.yaml workspace.yaml /dagster/
WORKDIR /app
USER analytics
# tini: process 1 passes SIGTERM on and reaps what Celery's children leave.
ENTRYPOINT ["tini", "--"]
CMD ["analytics-pipeline", "--help"]
