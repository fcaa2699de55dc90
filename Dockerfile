# An image for launch/gke.sh and launch/kubernetes.sh:
#
#   docker build --build-arg ACCELERATOR=cuda13 -t fewstep .
#
# ACCELERATOR: cpu, cuda13, cuda12 (extras of jax; CUDA comes in wheels, only the driver is the
# node's) or tpu. PYTHON: 3.11 to 3.13. What is installed is pinned by constraints.txt. Runs and
# data are mounted at /shared; data are looked for in /shared/data.
ARG PYTHON=3.12
ARG ACCELERATOR=cpu
FROM python:${PYTHON}-slim-bookworm AS base

ARG ACCELERATOR
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /fewstep
COPY requirements.txt constraints.txt ./
RUN case "$ACCELERATOR" in \
      cpu) extra= ;; \
      cuda12 | cuda13 | tpu) extra="jax[$ACCELERATOR]" ;; \
      *) echo "ACCELERATOR is cpu, cuda12, cuda13 or tpu" >&2; exit 2 ;; \
    esac \
    && pip install -r requirements.txt ${extra:+"$extra"} -c constraints.txt
COPY . .
RUN useradd --uid 1000 --create-home fewstep && mkdir -p /shared/data && chown -R fewstep /shared
ENV FEWSTEP_DATA=/shared/data
CMD ["python", "main.py", "--help"]

# No process of a job needs root; but the devices of a TPU belong to it.
FROM base AS for-cpu
USER 1000
FROM base AS for-cuda12
USER 1000
FROM base AS for-cuda13
USER 1000
FROM base AS for-tpu

FROM for-${ACCELERATOR}
