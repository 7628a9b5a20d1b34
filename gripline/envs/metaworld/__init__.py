"""Meta-World 3: fifty tabletop tasks of one Sawyer arm, with scripted experts."""
