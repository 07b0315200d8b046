# AetherNet on a processor: under 400 MB.
#   docker build -f docker/cpu.Dockerfile -t aethernet .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" aethernet upscale photo.jpg
FROM python:3.12-slim AS build
COPY . /source
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
# More of AetherNet's extras, e.g. --build-arg EXTRAS=video
ARG EXTRAS=""
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-compile \
    "$(echo /wheels/*.whl)${EXTRAS:+[$EXTRAS]}"
# Any user may write here, also one that the image does not know (--user).
ENV AETHERNET_CACHE=/tmp/aethernet
WORKDIR /work
USER 1000
ENTRYPOINT ["aethernet"]
CMD ["--help"]
