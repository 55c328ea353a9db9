# docker build -t fed-lscl .                                  the CPU build of PyTorch
# docker build -t fed-lscl-cuda --build-arg TORCH=cu126 .     a CUDA build, by its name on download.pytorch.org/whl
# docker run --rm -v "$PWD/kept:/results" fed-lscl run --method fed_lscl --profile smoke
FROM python:3.12-slim
ARG TORCH=cpu
RUN apt-get update -q && apt-get install -y -q --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /lscl
COPY constraints.txt .
# PyTorch first, and alone: its index has the builds that PyPI lacks, and no other of the pinned versions.
RUN pip install --no-cache-dir --no-deps -c constraints.txt --index-url "https://download.pytorch.org/whl/${TORCH}" torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY lscl lscl
RUN pip install --no-cache-dir -c constraints.txt '.[book,flower,track]'
# Records and cache outlive the container where the volume is mounted.
ENV LSCL_ROOT=/results LSCL_CACHE=/results/cache PYTHONUTF8=1
VOLUME /results
ENTRYPOINT ["lscl"]
CMD ["doctor"]
