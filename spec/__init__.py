"""The lifecycle of a KV cache as data: machines, reference model, table compiler, explorer, diagrams.

Everything that decides what happens to a cache, a batch slot, a link or an engine stands in :mod:`.lifecycle`.
The build compiles it into the tables that the core steps through; :mod:`.reference` runs it as a model of a whole
cluster; :mod:`.explorer` visits every state of a small one. Nothing here knows anything of the implementation.
"""
