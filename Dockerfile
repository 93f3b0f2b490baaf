# Serving only: no torch, no compiler, no installer, no root. Two targets, cpu (the default) and gpu:
#   docker build -t mexma .
#   docker build -t mexma:gpu --target gpu .
#   docker run --rm -p 8080:8080 --read-only --tmpfs /tmp -v mexma-data:/data mexma
# EXTRAS=milvus adds what the Milvus store needs. BASE is any Debian with python3 3.11 or newer and its venv module.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# g++ and Python's headers are for compiled parts of the package; neither leaves this stage.
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends g++ >/dev/null \
 && { test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
      || apt-get install -qq -y --no-install-recommends python3-dev >/dev/null; } \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY pyproject.toml constraints.txt ./

# Locked dependencies first: this layer is made anew only when they change.
FROM build AS dependencies-cpu
ARG EXTRAS
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
x = p['optional-dependencies']; print('\n'.join(p['dependencies'] + sum((x[e] for e in 'cpu otel $EXTRAS'.split()), [])))" > r.txt \
 && pip install -q -c constraints.txt -r r.txt

FROM build AS dependencies-gpu
ARG EXTRAS
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
x = p['optional-dependencies']; print('\n'.join(p['dependencies'] + sum((x[e] for e in 'gpu otel $EXTRAS'.split()), [])))" > r.txt \
 && pip install -q -c constraints.txt -r r.txt

# The project, without the rooms that need torch, and then the installer goes.
FROM dependencies-cpu AS build-cpu
COPY . .
RUN sh deploy/install_served.sh

FROM dependencies-gpu AS build-gpu
COPY . .
RUN sh deploy/install_served.sh

FROM ${BASE} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mexma \
 && install -d -o mexma -g mexma /data
WORKDIR /app
COPY models models
COPY LICENSE NOTICE ./
USER 10001:10001
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MEXMA_HOST=0.0.0.0 MEXMA_MODEL=/app/models/default MEXMA_DATA_DIR=/data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python3", "-m", "service.probe"]
CMD ["mexma-serve"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/venv /opt/venv
ENV MEXMA_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
