"""The reference model and the library, driven with the same calls and compared after each.

``terms``
    What the two sides are told and what they answer. ``places`` makes addresses of what stands for them in a call.
``reference_side``, ``library_side``
    The two sides: each carries out calls on the nodes that live in it. ``own_memory`` is memory of a program's own on
    the library's side; ``child_process`` moves that side to a process of its own.
``strategies``
    What is called, and with which arguments.
``machine``, ``rules``, ``clusters``
    The comparison; when what is called; the two machines that are run.
``tally``
    How many calls of each kind were made, and succeeded.
"""
