"""Trio, files and HTTP: the reloader and the admin side. Never imports the data plane; they meet in `process`."""
