"""One recorded forward of any model, on which the other diagnostics stand.

``snapshot`` leaves a model as it was, ``operations`` knows torch's functions, ``recorder`` writes a
forward down, ``graph`` is what it writes.
"""
