# gnp on NVIDIA GPUs. The libraries of CUDA come as wheels with JAX; the machine has only the driver.
#
#     docker build --tag gnp .
#     docker run --rm --gpus all gnp
#     docker run --rm --gpus all --shm-size 8g -v "$PWD":/work -v gnp-cache:/cache gnp train
#
# The second says what JAX sees (`gnp doctor`). `--build-arg ACCELERATOR=cuda12` is for drivers before 580.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG ACCELERATOR=cuda13
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    GNP_CACHE_DIR=/cache
WORKDIR /opt/gnp
COPY pyproject.toml README.md LICENSE ./
COPY gnpcli gnpcli
COPY presets presets
RUN pip install --no-cache-dir ".[${ACCELERATOR}]"
# Whoever `docker run --user` names can write both.
RUN mkdir -p /cache /work && chmod 1777 /cache /work
WORKDIR /work
ENTRYPOINT ["gnp"]
CMD ["doctor"]
