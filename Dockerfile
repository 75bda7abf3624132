# compal with CUDA. Linted (tests/test_release.py), not built by the project's tests: a machine with Docker builds it.
#
#   docker build --tag compal .
#   docker run --rm --gpus all --volume weights:/weights --volume "$PWD:/work" compal extract --backbone siglip2 --data …
#
# The base is Python alone: torch's wheels bring CUDA's libraries, the host its driver through the NVIDIA container
# toolkit. `--build-arg EXTRAS=…` chooses others of pyproject.toml's extras (`gpu` excludes `mining` and `interop`).

FROM python:3.12.11-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12.11-slim-bookworm
ARG EXTRAS=gpu,hf,lora,ray,report,s3,gcs,ssh,wandb

# Triton compiles the launchers of its kernels where they run.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir "compal[${EXTRAS}] @ file://$(echo /wheels/compal-*.whl)"

RUN useradd --create-home --uid 1000 compal \
 && mkdir /weights /work \
 && chown compal:compal /weights /work
USER 1000

# Weights are fetched once, into a volume; the workspace is ./compal-work of the folder that is mounted at /work.
ENV HF_HOME=/weights/huggingface \
    TORCH_HOME=/weights/torch \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
VOLUME ["/weights"]
WORKDIR /work

HEALTHCHECK --interval=5m --timeout=2m --start-period=1m --retries=2 CMD ["compal", "doctor"]
ENTRYPOINT ["compal"]
CMD ["--help"]
