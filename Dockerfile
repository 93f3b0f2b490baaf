# Serving only: no torch, no compiler, no root.
#   docker build -t mexma .
#   docker run --rm -p 8080:8080 -v mexma-data:/data mexma
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /app
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Locked dependencies first: this layer is rebuilt only when they change. The distribution needs
# its package folders to exist; empty ones do.
COPY pyproject.toml constraints.txt LICENSE NOTICE README.md ./
RUN mkdir -p mexma/data training model_export service/routes service/store service/page \
 && touch mexma/data/__init__.py training/__init__.py model_export/__init__.py service/__init__.py \
      service/routes/__init__.py service/store/__init__.py service/page/__init__.py \
 && echo '__version__ = "0"' > mexma/__init__.py \
 && pip install -c constraints.txt '.[cpu]' && pip uninstall -y mexma

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --create-home mexma && install -d -o mexma /data
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY mexma mexma
COPY service service
COPY models models
COPY LICENSE NOTICE ./
USER mexma
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MEXMA_HOST=0.0.0.0 MEXMA_DATA_DIR=/data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD \
  ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready')"]
CMD ["python", "-m", "service"]
