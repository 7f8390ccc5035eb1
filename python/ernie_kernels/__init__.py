"""Kernels and a model runner for Baidu's ERNIE-4.5 family."""
