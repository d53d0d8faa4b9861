"""Moving bytes between described regions of memory."""
