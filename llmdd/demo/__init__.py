"""A disaggregated language model in miniature: real prompts, real KV caches, two processes, on one host or on two.

==================  ==================================================================================================
module              what it holds
==================  ==================================================================================================
``transformer``     the model, in NumPy; knows nothing of caches beyond the arrays it is handed
``prompts``         where the prompts come from
``choices``         what a user may choose about a run
``settings``        what every process of a run must agree on
``messages``        everything the processes say to each other, besides what llmdd does for them
``channel``         how they say it
``process``         what every process does first and last
``worker``          how a process is started, and how one of another host is spoken to
``prefill``         the process that reads prompts and hands over their KV caches
``decode``          the process that pulls KV caches and generates
``reference``       the process that does all of it alone, to compare with
``orchestrator``    starts the processes, passes requests between them, watches over them
``introduction``    how the ends of a run on two hosts find each other and agree
``prefill_end``     the end with the orchestrator
``decode_end``      the end with the decode process
``released``        what is left in the pools in the end
``report``          what a run has shown
==================  ==================================================================================================

Prefill and decode use llmdd through its public API only, as any program would.
"""
