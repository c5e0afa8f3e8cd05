# The pods of stages: PyTorch with its CUDA libraries, and flash-attn where it is asked for.
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE}
# Not empty: build flash-attn; needs a BASE with CUDA's compiler. Empty: PyTorch's own kernels.
ARG FLASH_ATTN=""
# What it is then built as, with what: an image built again has the same kernels.
ARG FLASH_ATTN_VERSION=2.8.3.post2
ARG EINOPS_VERSION=0.8.2
ARG NINJA_VERSION=1.13.2
# How many compilers run at once: each takes several GiB.
ARG MAX_JOBS=4
# Triton, with which optimi's optimizers wait for no GPU, and compiled blocks need a compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /tmp/requirements.lock
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps -r /tmp/requirements.lock \
 && /opt/venv/bin/pip check \
 && if [ -n "${FLASH_ATTN}" ]; then \
      /opt/venv/bin/pip install --no-cache-dir --no-deps \
        "ninja==${NINJA_VERSION}" "einops==${EINOPS_VERSION}" \
   && MAX_JOBS="${MAX_JOBS}" /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation \
        "flash-attn==${FLASH_ATTN_VERSION}"; \
    fi
# A tokenizer's setting is no token.
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp TMPDIR=/tmp XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface TOKENIZERS_PARALLELISM=false
COPY pyproject.toml README.md /opt/hvkf/
COPY hvkf /opt/hvkf/hvkf
COPY flows /opt/hvkf/flows
COPY configs /opt/hvkf/configs
COPY docker/smoke.sh /usr/local/bin/smoke
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -e /opt/hvkf \
 && python -m compileall -q /opt/hvkf/hvkf /opt/hvkf/flows \
 && useradd --uid 1000 --no-create-home --home-dir /tmp hvkf \
 && install -d -o 1000 -g 1000 /cache
WORKDIR /opt/hvkf
USER 1000:1000
VOLUME ["/tmp", "/cache"]
CMD ["hvkf", "--help"]
