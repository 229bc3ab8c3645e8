"""Triton kernels. Importing a module of this package imports Triton.

Block sizes and numbers of warps are functions of shapes, strides and item sizes, never found by trying at run time. They are
made of the constants at the top of each file, and of ``_planes.py``, ``_rows.py``, ``_lines.py``, ``_heads.py``,
``_box_sums.py`` and ``_similarity.py`` for the walks that ops share. They are reasoned, and held by the ahead-of-time
compilation, which spills no register with them; they have not been measured on a GPU, where
``python -m benchmarks.tune <op>`` times others.
"""
