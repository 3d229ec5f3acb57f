# Two images from one file:
#   docker build --target cpu  -t yolov9-server .          OpenVINO on x86 or ARM CPUs, no torch inside
#   docker build --target cuda -t yolov9-server:cuda .     PyTorch on an NVIDIA GPU (--engine torch)
# Run, as a user without rights, on a root that is read-only (tests/system/test_read_only_root.py), data in a volume:
#   docker run --rm -p 8080:8080 --read-only --cap-drop ALL --security-opt no-new-privileges \
#     -e YOLOV9_TOKEN=... -v yolov9-data:/data yolov9-server
# with a model of your own: -v ./models:/models:ro ... yolov9-server --model /models/my-model
# Tokens with roles: docker exec CONTAINER python -m server.access add NAME --role viewer
# `pip install`, `python -m server` and its health check are what .ci/base runs outside of Docker.

FROM python:3.11-slim-bookworm AS source
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY yolov9 yolov9
COPY server server

FROM python:3.11-slim-bookworm AS cpu
COPY --from=source /src /src
RUN pip install --no-cache-dir '/src[hls,mqtt]' -c /src/constraints.txt
RUN useradd --system --create-home --home-dir /data --uid 10001 yolov9 && chmod 700 /data
USER yolov9
WORKDIR /data
ENV YOLOV9_HOST=0.0.0.0 YOLOV9_DATA=/data PYTHONDONTWRITEBYTECODE=1
EXPOSE 8080
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-m", "server.healthcheck"]
ENTRYPOINT ["python", "-m", "server"]

FROM cpu AS demo
# The same with footage and cameras that play it (configs/deploy/compose.yaml).
USER root
RUN pip install --no-cache-dir '/src[demo]' -c /src/constraints.txt
USER yolov9

FROM python:3.11-slim-bookworm AS cuda
# torch's wheel carries the CUDA libraries; the driver comes with the NVIDIA container runtime (--gpus all).
COPY --from=source /src /src
RUN pip install --no-cache-dir '/src[train]' -c /src/constraints.txt
RUN useradd --system --create-home --home-dir /data --uid 10001 yolov9 && chmod 700 /data
USER yolov9
WORKDIR /data
ENV YOLOV9_HOST=0.0.0.0 YOLOV9_DATA=/data PYTHONDONTWRITEBYTECODE=1 YOLOV9_ENGINE=torch \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
EXPOSE 8080
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-m", "server.healthcheck"]
ENTRYPOINT ["python", "-m", "server"]
