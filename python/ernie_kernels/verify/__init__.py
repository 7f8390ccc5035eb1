"""Is a loaded model the one that the checkpoint describes? Layer by layer against float64.

``formulas`` is the dense architecture in numpy, ``stored_weights`` reads the checkpoint by a path of
its own, ``engine_trace`` runs the engine's own layers one after the other, ``bounds`` says how far
the two may be apart, and ``check`` brings them together. ``formulas`` and ``bounds`` serve the
command ``doctor`` as well, which runs where no tokenizer can be imported.
"""
