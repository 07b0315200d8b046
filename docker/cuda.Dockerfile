# AetherNet with PyTorch for NVIDIA cards, and videos. The packages bring CUDA; the computer
# needs the driver and the NVIDIA Container Toolkit.
#   docker build -f docker/cuda.Dockerfile -t aethernet-cuda .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" aethernet-cuda \
#     upscale clip.mp4
FROM python:3.12-slim AS build
COPY . /source
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
# More of AetherNet's extras, e.g. --build-arg EXTRAS=tensorrt,video
ARG EXTRAS="torch,video"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-compile \
    "$(echo /wheels/*.whl)${EXTRAS:+[$EXTRAS]}"
# Any user may write here, also one that the image does not know (--user).
ENV AETHERNET_CACHE=/tmp/aethernet \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
USER 1000
ENTRYPOINT ["aethernet"]
CMD ["--help"]
