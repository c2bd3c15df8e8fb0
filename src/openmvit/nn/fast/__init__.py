"""Faster forms of the operations in `nn/ops.py`, and the only place that asks what machine this is.

`choose` picks a form for a call, or none; every other file holds one kind of form, each equal to the plain arithmetic.
"""
