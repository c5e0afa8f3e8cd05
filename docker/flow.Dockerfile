# Prefect's server and worker, flows, plans and commits: all that needs no PyTorch.
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS packages
COPY requirements-flow.lock /tmp/requirements-flow.lock
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps -r /tmp/requirements-flow.lock \
 && /opt/venv/bin/pip check

FROM ${BASE}
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HVKF_CODE=/opt/hvkf HOME=/tmp TMPDIR=/tmp \
    XDG_CACHE_HOME=/cache PREFECT_HOME=/tmp/prefect
COPY pyproject.toml README.md prefect.yaml /opt/hvkf/
COPY hvkf /opt/hvkf/hvkf
COPY flows /opt/hvkf/flows
COPY configs /opt/hvkf/configs
COPY docker/smoke.sh /usr/local/bin/smoke
# Bytecode is made now: the root is read-only later.
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -e /opt/hvkf \
 && python -m compileall -q /opt/hvkf/hvkf /opt/hvkf/flows \
 && useradd --uid 1000 --no-create-home --home-dir /tmp hvkf \
 && install -d -o 1000 -g 1000 /cache
WORKDIR /opt/hvkf
USER 1000:1000
VOLUME ["/tmp", "/cache"]
CMD ["hvkf", "--help"]
