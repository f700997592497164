# The tests in a clean system:  docker build -t wan-vae . && docker run --rm wan-vae
# The command, on files here:   docker run --rm -v "$PWD:/data" wan-vae wan-vae info /data/clip.mp4
FROM python:3.11-slim

# The CPU kernels are compiled at the first inference.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home wan && install --directory --owner=wan --group=wan /opt/wan_vae /opt/venv
USER wan
WORKDIR /opt/wan_vae
ENV PATH=/opt/venv/bin:$PATH \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1

COPY --chown=wan:wan . .
RUN python -m venv /opt/venv && pip install -e '.[test]'
CMD ["pytest"]
