"""How many instructions the paths of the core take: ``python bench/instructions`` (see docs/instructions.md).

``exercise``, ``exercises/``
    What is counted: a path of the core, taken again and again.
``instances``, ``stillness``
    What the exercises stand on, and what is done so that every run is the same.
``program``, ``switch``
    The program that is measured, and how it turns the counting on and off.
``valgrind``, ``profiles``, ``counts``
    How it is run, what callgrind writes about it, and the counts that come of it.
``environment``, ``baseline``, ``verdict``
    What counts depend on, what they were, and what is said about the difference.
``command``, ``table``, ``conclusions``
    How it is asked for and shown.
"""
