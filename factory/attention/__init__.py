"""Attention functions of our own, beside those of transformers. This file imports no torch: the compiler reads it."""

S2 = "s2"  # the name in compute.attention and in transformers' registry
