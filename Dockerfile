# unclip serve in a container: docs/serve.md says how to run it.
#
#   docker build -t unclip .
#   docker build -t unclip:cuda --build-arg TORCH=cu128 .

ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# cpu, or a CUDA as PyTorch names its wheels (cu126, cu128): they bring it along, the host has the driver.
ARG TORCH=cpu
# hadolint ignore=DL3013
RUN PIP_INDEX_URL="https://download.pytorch.org/whl/${TORCH}" pip install --no-cache-dir "torch>=2.6"

COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY unclip /src/unclip
RUN pip install --no-cache-dir "/src[serve]" \
    && useradd --create-home --uid 10001 unclip \
    && install -d -o unclip /cache

USER 10001
WORKDIR /home/unclip
ENV UNCLIP_CACHE=/cache HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["unclip", "serve", "--host", "0.0.0.0"]
