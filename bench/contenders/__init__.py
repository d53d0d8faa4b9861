"""Who is measured: each module is imported in a process from which its contenders are forked."""
