"""What CUDA does that a CPU wheel of PyTorch does not: tables and functions, each with its source.

Two context managers change what runs: ``autocast.cuda_autocast`` (casts and the weight cache) and ``modes.cuda_composites``
(composite functions, attention among them). Three functions are asked at each operator, in this order: ``results.instead``
(before the call), ``results.corrected`` and ``scratch.scratch_of`` (after it). ``results.host_results`` and
``workspaces.Workspaces`` say what is no CUDA memory, and what cuBLAS keeps.
"""
