# The main job in a container: `docker run IMAGE --preset quick --output pruned`, in the directory mounted at /work.
# EXTRAS: accelerators (cuda, cuda12, tpu, rocm) and `data`. BASE: anything of Debian or Ubuntu with Python from 3.11
# on or its packages; ROCm's own libraries come with its images.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRAS=data

RUN command -v python3 >/dev/null && python3 -m venv /opt/tyr_jax \
    || { apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv \
         && rm -rf /var/lib/apt/lists/* && python3 -m venv --clear /opt/tyr_jax; }
ENV PATH=/opt/tyr_jax/bin:${PATH}

COPY pyproject.toml README.md LICENSE /src/
COPY tyr_jax /src/tyr_jax
RUN pip install --no-cache-dir "/src[${EXTRAS}]"

WORKDIR /work
ENTRYPOINT ["python", "-m", "tyr_jax.prune"]
CMD ["--help"]
