# Two images from one file:
#   docker build --target cpu  -t yolov9-server .          OpenVINO on x86 or ARM CPUs, no torch inside
#   docker build --target cuda -t yolov9-server:cuda .     PyTorch on an NVIDIA GPU (--engine torch)
# Run: docker run --rm -p 8080:8080 -e YOLOV9_TOKEN=... -v yolov9-data:/data yolov9-server
# with a model of your own: -v ./models:/models:ro ... yolov9-server --model /models/my-model
# Every RUN line below is a command that .ci/base runs outside of Docker.

FROM python:3.11-slim-bookworm AS source
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY yolov9 yolov9
COPY server server

FROM python:3.11-slim-bookworm AS cpu
COPY --from=source /src /src
RUN pip install --no-cache-dir /src -c /src/constraints.txt
RUN useradd --system --create-home --home-dir /data --uid 10001 yolov9
USER yolov9
WORKDIR /data
ENV YOLOV9_HOST=0.0.0.0 YOLOV9_DATA=/data
EXPOSE 8080
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
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
RUN useradd --system --create-home --home-dir /data --uid 10001 yolov9
USER yolov9
WORKDIR /data
ENV YOLOV9_HOST=0.0.0.0 YOLOV9_DATA=/data YOLOV9_ENGINE=torch NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
EXPOSE 8080
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
ENTRYPOINT ["python", "-m", "server"]
