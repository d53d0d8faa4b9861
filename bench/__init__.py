"""llmdd beside everything one might use instead: what ``llmdd bench`` and ``pytest bench/`` run.

``case``, ``catalogue``, ``cases/``
    What is measured: an operation, its size, and who does it.
``contender``, ``contenders/``
    Who does it: llmdd, the baselines and the peers, each behind the same few methods.
``nursery``, ``other_end``
    The processes that contenders live in.
``match``
    The rounds of one case, by turns.
``results``, ``machine``
    What was found, and where.
``summary``, ``plots``, ``page``, ``command``
    How it is shown.

Beside them the soak, which ``llmdd soak`` runs (``soak``, ``workload``, ``faults``, ``soak_*``): requests served while
processes are killed, stopped, cut off and restarted.
"""
