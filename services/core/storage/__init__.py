"""Files too big for Redis: one interface over directories and S3, and the stores on top of it."""
