"""A folder per method: `spec` (keys, rules, parameter formulas; no torch) and `run` (attach, optimizer; torch).

A spec has `Settings`, `RULES`, `trainable(method, arch)` and `optimizer_elements(method, shapes)`.
A run has `attach(model, plan)` and `optimizer(model, plan)`.
"""
