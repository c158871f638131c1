"""How work is run, whatever it is: worker processes, tasks and their order, one rule for failures, progress, file locks."""
