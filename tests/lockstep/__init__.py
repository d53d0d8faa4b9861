"""The reference model and the library, driven with the same calls and compared after each.

``terms``
    What the two sides are told and what they answer.
``reference_side``, ``library_side``
    The two sides: each carries out calls on the nodes that live in it. ``child_process`` moves the library's to a
    process of its own.
``strategies``, ``rules``
    What is called, and when; the rules hold the comparison.
"""
