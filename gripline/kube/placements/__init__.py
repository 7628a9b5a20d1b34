"""The shipped placements: one YAML file each, named by its stem. A package, so that they are installed with it."""
