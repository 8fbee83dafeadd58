"""What CUDA's kernels and libraries take for a moment, or keep: formulas of sizes alone, without torch."""
