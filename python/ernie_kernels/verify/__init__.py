"""Is a loaded model the one that the checkpoint describes? Layer by layer against float64.

``formulas`` is the architecture in numpy, and ``media`` what images and videos make of a prompt;
``stored_weights`` and ``stored_vision`` read the checkpoint by a path of their own, ``engine_trace`` and
``vision_trace`` run the engine's own layers one after the other, ``bounds`` and ``vision_bounds`` say how
far the two may be apart, and ``check`` brings them together. ``formulas`` and the bounds serve the
command ``doctor`` as well, which runs where no tokenizer can be imported.
"""
