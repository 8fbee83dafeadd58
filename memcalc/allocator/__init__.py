"""PyTorch's CUDA caching allocator, modelled from its source: what ``allocated`` and ``reserved`` are, to the byte.

``settings`` reads PYTORCH_CUDA_ALLOC_CONF, ``caching`` is the allocator, ``replay`` plays a tape through it, ``history``
holds it against what a device recorded, and ``snapshot`` writes and reads the files of PyTorch's memory visualiser.

Source of every rule: pytorch c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.{h,cpp} of 2.11 to 2.13, which
agree on all that is modelled here.
"""
