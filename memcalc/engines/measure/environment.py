"""Everything the bytes may depend on besides the job: device, driver, versions, the allocator's settings."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from memcalc import __version__
from memcalc.measurement import Device, Environment

PACKAGES = (
    "torch", "transformers", "torchvision", "peft", "accelerate", "deepspeed", "numpy", "bitsandbytes", "torchao",
    "pytorch-optimizer", "came-pytorch", "lion-pytorch", "galore-torch", "schedulefree", "prodigyopt", "apollo-torch",
    "adam-mini", "lomo-optim", "muon-optimizer", "sophia-opt", "timm", "triton", "nvidia-cublas-cu12", "nvidia-cudnn-cu12",
    "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu13",
)  # fmt: skip
"""Packages whose version may change a byte; those that are not installed are left out."""
VARIABLES = (
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_MODULE_LOADING", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "TORCHDYNAMO_DISABLE", "TORCH_CUDNN_V8_API_DISABLED",
    "CUDA_LAUNCH_BLOCKING", "TORCH_NCCL_AVOID_RECORD_STREAMS", "NCCL_BUFFSIZE",
)  # fmt: skip
"""Environment variables that change what is allocated."""


def environment(device: str, index: int, command: list[str] | None = None) -> Environment:
    """This process's environment; it names the device and no machine."""
    return Environment(
        device=_cuda_device(index) if device == "cuda" else _cpu(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        memcalc=__version__,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=_cudnn(),
        packages=packages(),
        allocator=allocator(device),
        command=_plain_command(command or sys.argv),
    )


def packages() -> dict[str, str]:
    """Installed versions of what matters."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def allocator(device: str) -> dict[str, str]:
    """The allocator's backend and settings, and the variables that change it."""
    told = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if device == "cuda":
        told["backend"] = torch.cuda.get_allocator_backend()
        settings: Any = torch.cuda.memory._snapshot().get("allocator_settings", {})
        told |= {str(key): str(value) for key, value in settings.items()}
    else:
        told["threads"] = str(torch.get_num_threads())
    return told


def _cuda_device(index: int) -> Device:
    from memcalc.engines.measure.driver import driver_version

    properties = torch.cuda.get_device_properties(index)
    return Device(
        name=properties.name, kind="cuda", total_bytes=int(properties.total_memory),
        capability=f"{properties.major}.{properties.minor}", driver=driver_version(),
    )  # fmt: skip


def _cpu() -> Device:
    pages, page = (os.sysconf(name) if name in os.sysconf_names else 0 for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    return Device(name=_cpu_name(), kind="cpu", total_bytes=pages * page or None)


def _cpu_name() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _cudnn() -> str | None:
    cudnn: Any = torch.backends.cudnn
    found = cudnn.version() if cudnn.is_available() else None
    return None if found is None else str(found)


def _plain_command(command: list[str]) -> list[str]:
    """The command without the folders of the machine it ran on."""
    return [Path(word).name if word.startswith("/") else word for word in command]
