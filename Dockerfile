# The PyTorch wheels bring CUDA's libraries, so a plain Python image is enough on a GPU machine too. docs/clusters-and-container.md has the commands.
#   --build-arg BASE_IMAGE=...      another Debian-based image with Python 3.11 to 3.13 and its venv module
#   --build-arg PIP_FIND_LINKS=...  page with PyTorch's CPU wheels: an image under 2 GB instead of 6
#   --build-arg MMCV_OPS=compiled   mmcv's compiled operations (needs the CUDA build of PyTorch to be of use; half an hour)
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE} AS packages
SHELL ["/bin/sh", "-eu", "-c"]

# Debian keeps one version of a package in a release, so a pin here would only break the build at its next update.
# hadolint ignore=DL3008
RUN apt-get update; \
    apt-get install -y --no-install-recommends libglib2.0-0 tini; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*; \
    python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# Only what decides the installed versions comes before the long step. It then drops what nothing here imports: the opencv that
# wants the X11 and OpenGL libraries (its headless twin has the same modules), what breaks the code for `make mutants`, the
# packages' own tests with their data, and sources that nothing compiles.
ARG PIP_FIND_LINKS=""
WORKDIR /opt/d3s2
COPY requirements.in constraints.txt ./
COPY packaging packaging
RUN pip install --no-cache-dir -r requirements.in ./packaging/imaug -c constraints.txt; \
    pip uninstall -y opencv-python mutmut libcst; \
    pip install --no-cache-dir --no-deps --force-reinstall opencv-python-headless -c constraints.txt; \
    find /opt/venv/lib/python3.*/site-packages/torch \( -path '*/torch/test/*' -o -path '*/torch/bin/*test*' -o -path '*/torch/bin/protoc*' \) \
        -type f -delete; \
    find /opt/venv/lib/python3.*/site-packages \( -path '*/tests/*' -name 'test_*' -o -path '*/tests/data/*' -o -path '*/jupyterlab/galata/*' \
        -o -path '*/debugpy/*.c' -o -path '*/fontTools/*.c' -o -name '*.map' \) -type f -delete

FROM packages AS operations
ARG MMCV_OPS=none
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;12.0+PTX"
# hadolint ignore=DL3008
RUN mkdir /wheels; \
    if [ "$MMCV_OPS" = compiled ]; then \
        apt-get update; \
        apt-get install -y --no-install-recommends g++ python3-dev; \
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*; \
        pip install --no-cache-dir ninja -c constraints.txt; \
        cuda=$(python -c 'import torch; print(torch.version.cuda or "")'); \
        if [ -n "$cuda" ]; then \
            pip install --no-cache-dir "nvidia-cuda-nvcc==$cuda.*" "nvidia-cuda-crt==$cuda.*" "nvidia-nvvm==$cuda.*" "nvidia-cuda-cccl==$cuda.*"; \
            CUDA_HOME=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu${cuda%%.*}; \
            ln -sfn lib "$CUDA_HOME/lib64"; \
            for library in "$CUDA_HOME"/lib/libcudart.so.*; do ln -sf "$library" "$CUDA_HOME/lib/libcudart.so"; done; \
            export CUDA_HOME CPATH="$CUDA_HOME/include" FORCE_CUDA=1; \
        fi; \
        MMCV_WITH_OPS=1 CFLAGS="-O2 -g0 -DNDEBUG" pip wheel --no-cache-dir --no-deps --no-build-isolation --no-binary :all: \
            --wheel-dir /wheels "$(grep '^onedl-mmcv==' requirements.in)"; \
    fi

FROM packages
COPY --from=operations /wheels /wheels
RUN find /wheels -name '*.whl' -exec pip install --no-cache-dir --no-deps --force-reinstall {} +

# Models that are fetched stay in what is mounted, as data and runs do. The folders are open to every user id, so that `--user $(id -u):$(id -g)` can write to what is mounted there.
ARG UID=1000
RUN useradd --uid "$UID" --create-home d3s2; \
    chmod 1777 /home/d3s2; \
    install -d -m 1777 /d3s2
ENV HOME=/home/d3s2 \
    D3S2_CONTAINER=1 \
    D3S2_HOME=/d3s2 \
    HF_HOME=/d3s2/hub \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8888
# Only JupyterLab can be asked how it is; a run that works on its notebooks is healthy.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["sh", "-c", "! grep -qaz '^lab$' /proc/1/cmdline || \
    python -c \"import urllib.request as u; u.urlopen('http://127.0.0.1:8888/api', timeout=5)\""]
# A first word that is no command of d3s2 is a program of the image, such as a hub's jupyterhub-singleuser.
ENTRYPOINT ["tini", "--", "d3s2"]
CMD ["lab", "--address", "0.0.0.0"]

# The repository comes last: after an edit only these steps are repeated.
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
USER ${UID}
