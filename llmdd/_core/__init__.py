"""The compiled core: arena, key index, page pool, reference words, transfers.

The ``.pxd`` files are its C contract; read them to learn what the core does.
"""
