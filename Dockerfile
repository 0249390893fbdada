# The codec and its page on a CPU. Build: docker build -t aeic-lightning .
# Compress: docker run --rm -v "$PWD:/data" aeic-lightning compress photo.jpg -o streams
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY aeic_lightning ./aeic_lightning
COPY callbacks ./callbacks
COPY datamodules ./datamodules
COPY experiments ./experiments
RUN pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch torchvision \
    && pip install -c constraints.txt '.[serve]' \
    && rm -rf /source/*

RUN useradd --create-home --uid 1000 user && mkdir /data && chown user /data
USER 1000
WORKDIR /data
ENTRYPOINT ["aeic-lightning"]
CMD ["--help"]
