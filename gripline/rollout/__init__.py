"""Running episodes: environment workers and policy servers as Ray actors, and the driver that feeds them."""
