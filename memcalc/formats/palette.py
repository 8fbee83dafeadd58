"""One colour for each role, the same in every picture, apart in both themes for people who see few colours too.

The hues are Okabe and Ito's set (https://jfly.uni-koeln.de/color/, 2008) and, for roles beyond its eight, darker and paler
ones; a test holds neighbours in the stack apart as protanopes, deuteranopes and tritanopes see them.
"""

from __future__ import annotations

from memcalc.tape.events import Role

LIGHT: dict[Role, str] = {
    "parameter": "#0072b2", "parameter_copy": "#8ccbee", "master_parameter": "#1f3a6e", "buffer": "#9aa3ad",
    "optimizer_state": "#009e73", "gradient": "#e69f00", "cache": "#a010e8", "input": "#7a4b1e", "activation": "#d55e00",
    "temporary": "#f6ee8a",
    "communication": "#c76b9e", "workspace": "#5b3a8c", "context": "#c4c9cf",
}  # fmt: skip
DARK: dict[Role, str] = {
    "parameter": "#2b7cc9", "parameter_copy": "#9ad6f5", "master_parameter": "#3b4f96", "buffer": "#8b949e",
    "optimizer_state": "#1fb488", "gradient": "#e8a317", "cache": "#9800fc", "input": "#a8743f", "activation": "#e0691a",
    "temporary": "#f8f2a0",
    "communication": "#d584b2", "workspace": "#8f6fd0", "context": "#5d6670",
}  # fmt: skip
LABELS: dict[Role, str] = {
    "parameter": "parameters", "parameter_copy": "parameter copies", "master_parameter": "master parameters",
    "buffer": "buffers", "cache": "keys and values", "optimizer_state": "optimizer states", "gradient": "gradients",
    "input": "inputs",
    "activation": "activations", "temporary": "temporaries", "communication": "communication", "workspace": "workspace",
    "context": "CUDA context",
}  # fmt: skip
"""What a legend calls each role."""
