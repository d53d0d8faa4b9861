"""What is called, and with which arguments.

Each strategy yields a whole :class:`~lockstep.terms.Call`. Most are calls that a correct program would make in the
present state of the cluster, which the strategies look up in the reference model; in the others an argument or two is
odd: of a wrong type, out of range, or naming what does not exist.

``odd``
    Odd arguments.
``present``
    What there is in the cluster, to be named in a call.
``engines``, ``links``, ``communicators``, ``caches``, ``registered``, ``slots``, ``blocks``, ``layerwise``
    Calls, by what they are about.
``former``
    Any of those on a manager whose engine was finalized.
"""
