"""What a host agent does when it is told to: one verb, one file (pivot, probe, repair), and the steps they share."""
