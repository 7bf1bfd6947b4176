# Training and tools on an official PyTorch image.
#
#   docker build -t vfm-vae .
#   docker run --gpus all --ipc=host -v "$PWD/datasets:/opt/vfm-vae/datasets" -v "$PWD/pretrained:/opt/vfm-vae/pretrained" \
#       -v "$PWD/runs:/opt/vfm-vae/runs" vfm-vae torchrun --standalone --nproc_per_node=8 train.py --config FILE
#
# --ipc=host: loader processes hand over batches in shared memory, and a container has 64 MB of it by default.

FROM pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime

WORKDIR /opt/vfm-vae

# The dependencies change less often than the code; torch and torchvision of the image satisfy them.
COPY requirements.txt ./
RUN grep -v '^-e' requirements.txt > /tmp/dependencies.txt \
    && pip install --no-cache-dir -r /tmp/dependencies.txt

COPY . .
RUN pip install --no-cache-dir --no-deps -e .

ENV OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
CMD ["python", "train.py", "--help"]
