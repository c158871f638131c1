"""Work that is handed to a scheduler: the cells of a study, or the workers of a tuning, as jobs of SLURM or of this machine."""
