"""A model's step played on shapes alone: values without data, whose births and deaths are the tape.

Layers are written as their modules are in PyTorch: locals hold values, operators make them, and what nobody holds any more is
freed there and then, as reference counts do it in CPython and in autograd's C++. No torch is needed: a value is a shape, and
sizes may be ints or arrays (one tape shape, many jobs).
"""
