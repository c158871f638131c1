"""Work that is handed to SLURM: the tasks of a study, or the commands of a search, as jobs of submitit."""
