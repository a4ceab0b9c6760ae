# ray-ft with all that its constraints name:  docker build -t ray-ft .
# A run in a folder:  docker run --rm --gpus all --shm-size 2g -v "$PWD:/work" ray-ft cv --config my.yaml --out runs/first
# KubeRay takes it as it is (configs/cluster/kuberay_job.yaml). torch brings CUDA, the host its driver.
FROM python:3.11-slim-bookworm

RUN useradd --uid 1000 --create-home ray && install --directory --owner ray /work
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[cluster]' && rm -rf /src

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["ray-ft"]
