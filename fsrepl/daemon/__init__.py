"""The process: its loop, its socket, its reports to other programs."""
