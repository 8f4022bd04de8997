"""Slurm: jobs through sbatch, on this machine or on a login node."""
