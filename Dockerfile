# Serving only: no torch, no compiler, no root.
#   docker build -t mexma .
#   docker run --rm -p 8080:8080 -v mexma-data:/data mexma
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /app
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Locked dependencies first: this layer is rebuilt only when they change.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + p['optional-dependencies']['cpu']))" > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt

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
