"""Messages between the processes: what is said, how it is signed, and the shell round each handler."""
