"""What a process takes of a GPU beside the memory PyTorch's allocator reserves, as people have published it.

Out-of-memory messages of PyTorch say it to two digits: "this process has 14.25 GiB memory in use. Of the allocated memory
12.87 GiB is allocated by PyTorch, and 912.01 MiB is reserved by PyTorch but unallocated" leaves 0.49 GiB for the CUDA context,
the kernels that were loaded into it, and what libraries allocate by themselves.

:data:`RUNNING` lists messages by what they say, never by what is left: one process; a GPU that is stated or told by its
capacity alone; no sign of ranks (a rank before the line, DDP, DeepSpeed, torchrun), no CUDA graphs, and no library known to
allocate by itself (vLLM, tiny-cuda-nn). The rule was written down after the first messages had been read, and they are no
random sample: what is left of the largest is as large as whatever its program loaded.
"""

from __future__ import annotations

from memcalc.records import dataclass
from memcalc.units import MIB

_LOG = "out-of-memory message of torch in a public log"


@dataclass(frozen=True, slots=True)
class Running:
    """A process that ran out of memory.

    Attributes:
        capability: its GPU's compute capability.
        in_use: memory of the process, as printed.
        allocated: allocated by PyTorch, as printed.
        unallocated: reserved by PyTorch but unallocated, as printed.
        source: where it was read.
    """

    capability: str
    in_use: str
    allocated: str
    unallocated: str
    source: str


@dataclass(frozen=True, slots=True)
class Bare:
    """A process that had a CUDA context and next to nothing in it: bytes, and half a unit of the figure's last digit."""

    capability: str
    nbytes: int
    halfwidth: int
    source: str


RUNNING: tuple[Running, ...] = (
    Running("6.0", "15.82 GiB", "15.36 GiB", "168.02 MiB", "andimarafioti/florence2-finetuning#17 (15.89 GiB: P100)"),
    Running("7.0", "31.54 GiB", "28.49 GiB", "2.68 GiB", f"{_LOG} (31.73 GiB: V100)"),
    Running("7.0", "31.72 GiB", "29.66 GiB", "1.68 GiB", f"{_LOG} (31.73 GiB: V100)"),
    Running("7.0", "22.37 GiB", "17.89 GiB", "3.32 GiB", f"{_LOG} (31.74 GiB: V100)"),
    Running("7.0", "16.95 GiB", "2.10 GiB", "14.46 GiB", f"{_LOG} (31.73 GiB: V100)"),
    Running("7.5", "14.52 GiB", "14.06 GiB", "330.42 MiB", "FoundationVision/GenerateU#10 (14.75 GiB: T4)"),
    Running("7.5", "9.27 GiB", "8.79 GiB", "351.89 MiB", "ragntune/code-llama-finetune#3 (14.75 GiB: T4)"),
    Running("7.5", "14.56 GiB", "14.04 GiB", "404.14 MiB", f"{_LOG} (14.58 GiB: T4)"),
    Running("7.5", "11.14 GiB", "10.02 GiB", "1006.76 MiB", f"{_LOG} (14.56 GiB: T4)"),
    Running("7.5", "14.20 GiB", "13.98 GiB", "129.49 MiB", f"{_LOG} (14.74 GiB: T4)"),
    Running("7.5", "7.92 GiB", "4.78 GiB", "3.00 GiB", f"{_LOG} (14.56 GiB: T4)"),
    Running("8.0", "14.25 GiB", "12.87 GiB", "912.01 MiB", "TianheWu/CoSeR#10 (A100)"),
    Running("8.0", "37.45 GiB", "36.93 GiB", "34.52 MiB", "pico-lm/pico-train#50 (A100)"),
    Running("8.0", "16.54 GiB", "15.94 GiB", "205.65 MiB", "HiDream-ai/VAREdit#6 (A100)"),
    Running("8.6", "11.79 GiB", "11.44 GiB", "43.59 MiB", f"{_LOG} (23.68 GiB: RTX 3090)"),
    Running("8.6", "22.98 GiB", "22.65 GiB", "77.68 MiB", f"{_LOG} (23.68 GiB: RTX 3090)"),
    Running("8.6", "16.31 GiB", "16.01 GiB", "7.47 MiB", f"{_LOG} (23.69 GiB: RTX 3090)"),
    Running("8.6", "23.58 GiB", "18.26 GiB", "3.69 GiB", f"{_LOG} (23.70 GiB: RTX 3090)"),
    Running("8.9", "44.40 GiB", "43.94 GiB", "41.95 MiB", "DINGYANB/MTVCrafter#21 (RTX 6000 Ada)"),
    Running("8.9", "22.39 GiB", "21.58 GiB", "350.11 MiB", "lrzjason/T2ITrainer#37 (RTX 4090)"),
    Running("8.9", "14.56 GiB", "13.86 GiB", "213.20 MiB", "3DTopia/Phidias-Diffusion#8 (RTX 4090)"),
    Running("8.9", "22.69 GiB", "21.72 GiB", "520.54 MiB", "pinokiofactory/flux-webui#11 (RTX 4090)"),
    Running("8.9", "44.47 GiB", "43.89 GiB", "79.61 MiB", "huggingface/sentence-transformers#3214 (L40S)"),
    Running("9.0", "61.19 GiB", "31.03 GiB", "29.50 GiB", f"{_LOG} (H100)"),
    Running("10.0", "168.34 GiB", "167.64 GiB", "4.62 MiB", f"{_LOG} (178.35 GiB: B200)"),
    Running("12.0", "31.34 GiB", "30.74 GiB", "19.41 MiB", "Wan-Video/Wan2.1#465 (RTX 5090)"),
    Running("12.0", "16.63 GiB", "15.03 GiB", "1.00 GiB", f"{_LOG} (31.36 GiB: RTX 5090)"),
)
"""Where PyTorch loads each kernel when it is first called (see :data:`LAZY_TORCH`)."""

BARE: tuple[Bare, ...] = (
    Bare("8.6", 256 * MIB, MIB // 2, "invoke-ai/InvokeAI#9413: 256 MiB (RTX 3090, torch 2.7.1+cu128, driver 610.43)"),
    Bare("8.9", 426 * MIB, MIB // 2, "unslothai/unsloth-zoo#1053: 426 MiB (RTX 6000 Ada, torch 2.10.0+cu130)"),
)
"""Contexts alone, likewise."""

EAGER: tuple[Bare, ...] = (
    # 1343 MiB on the whole device after torch.ones((1, 1)).to("cuda"), whose segment takes 2 MiB
    Bare("7.0", 1341 * MIB, MIB // 2, "huggingface/transformers perf_train_gpu_one.mdx@0016acf: 1343 MB (V100, CUDA 11.2)"),
    # 1008.19 MiB after one small tensor, 0.94 MiB before, of which 2 MiB are its segment
    Bare("7.0", 1054_064_640, MIB // 2, "pytorch/pytorch#28394: 1008.2 MB (Titan V, torch 1.3, CUDA 10.1)"),
    # 1035 and 1644 MiB with a tensor of 64 x 16 x 200 x 200 floats, in a segment of 158 MiB
    Bare("7.5", 877 * MIB, MIB // 2, "pytorch/pytorch#49877: 1035 MiB (RTX 2080 Ti, torch 1.6.0+cu101)"),
    Bare("8.6", 1486 * MIB, MIB // 2, "pytorch/pytorch#49877: 1644 MiB (RTX 3090, torch 1.7.1+cu110)"),
)
"""Contexts with all of PyTorch's kernels in them, as before :data:`LAZY_TORCH`; those of libraries come on top."""

LAZY_TORCH = (1, 13)  # pytorch/pytorch#86509 sets CUDA_MODULE_LOADING=LAZY: 287,047,680 bytes in place of 666,632,192
LAZY_CUDA = (11, 7)  # CUDA programming guide 4.7.2: lazy loading is there from 11.7 on (on by default from 12.2)

# NCCL 2.30.7 src/init.cc:810-813: DEFAULT_LL_BUFFSIZE, DEFAULT_LL128_BUFFSIZE, DEFAULT_BUFFSIZE (NCCL_STEPS is 8)
NCCL_LL = 8 * 512 * 8 * 16  # NCCL_LL_LINES_PER_THREAD x NCCL_LL_MAX_NTHREADS x NCCL_STEPS x sizeof(ncclLLFifoLine)
NCCL_LL128 = 120 * 640 * 8 * 8  # NCCL_LL128_ELEMS_PER_THREAD x NCCL_LL128_MAX_NTHREADS x NCCL_STEPS x sizeof(uint64_t)
NCCL_SIMPLE = 1 << 22  # DEFAULT_BUFFSIZE, 4 MiB
NCCL_CONTROL = 4096  # NCCL src/include/comm.h: ncclSendMem and ncclRecvMem are MEM_ALIGN bytes each
NCCL_PAGE = 2 * MIB  # NCCL src/include/comm.h:46: CUDA_IPC_MIN, to which src/transport/p2p.cc:410 and :491 round
NCCL_CHANNELS = 64  # NCCL src/include/device.h:91: MAXCHANNELS (64 since 2.25, 32 before)
NCCL_LOCAL = 8
"""Ranks of one node. Between nodes NCCL has buffers for the network too, of which nothing is said here."""
NVLS_CHANNELS = {"9.0": 16, "10.0": 24, "10.3": 24}  # NCCL src/transport/nvls.cc:155-157: NVLS_NCHANNELS_SM90, _SM100_NVL
NVLS_BUFFER = 128 * 1024 * 8  # NCCL src/transport/nvls.cc:160, :428: NVLS_CHUNKSIZE x NCCL_STEPS
