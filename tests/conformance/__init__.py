"""The contract, statement by statement: one file for each section, one test for each statement.

The first line of a test's docstring cites what it holds the code to (``api §3.4``, ``api D29``). What can be said of
both is asked of the reference model and of the library, each a :class:`.world.World`.
"""
